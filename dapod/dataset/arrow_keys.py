"""A text for each row of an Arrow batch, equal for equal rows, made without Python objects.

It joins what the columns hold (text, numbers, structs, lists of them) with NUL, which no text has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def row_keys(batch: Any) -> Sequence[str | None]:
    """None for a row with a null in it, and for all rows of a column of another kind."""
    import pyarrow
    import pyarrow.compute as compute

    try:
        texts = [text for column in batch.columns for text in _texts(column)]
    except pyarrow.ArrowException:
        return [None] * len(batch)
    keys: list[str | None] = compute.binary_join_element_wise(*texts, "\0").to_pylist()
    return keys


def _texts(column: Any) -> Iterator[Any]:
    """Arrays of text, as many as the column has leaves."""
    import pyarrow
    import pyarrow.compute as compute
    from pyarrow import types

    if types.is_struct(column.type):
        for part in column.flatten():
            yield from _texts(part)
    elif types.is_list(column.type) or types.is_large_list(column.type):
        yield compute.list_value_length(column).cast(pyarrow.string())
        for part in _texts(column.flatten()):
            offsets = compute.subtract(column.offsets, column.offsets[0])
            yield compute.binary_join(type(column).from_arrays(offsets, part), "\0")
    else:
        yield column.cast(pyarrow.string())
