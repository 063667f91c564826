"""Data sets: rows from JSON lines, parquet, the Hugging Face hub or reasoning-gym (docs/data.md).

    source ──► readers: jsonl, parquet, hub, procedural ──► layout ──► distinct ──► DataSet
               (values by column)                           (Row)     (counted)
    DataSet + the model's tokenizer ──► tokenised: lengths checked, long prompts refused or filtered

Rows keep the order they were read in; the order they are trained in is the buffer's. What a reader
needs (pyarrow, huggingface_hub, reasoning-gym) is imported when it reads.

Example: `read_rows(config.data)[0].message`.
"""

from dapod.dataset.counts import Counts
from dapod.dataset.reading import DataSet, read_data, read_rows
from dapod.dataset.rows import Message, Row

__all__ = ["Counts", "DataSet", "Message", "Row", "read_data", "read_rows"]
