"""A data set as a model reads it: token ids of every prompt, none longer than the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dapod.config import ConfigError, Data
from dapod.dataset.reading import DataSet, read_data
from dapod.dataset.rows import Row
from dapod.prompt_tokens import PromptTokenizer
from dapod.types import TokenIds


@dataclass(frozen=True, kw_only=True)
class TokenisedDataSet:
    """The prompts of a run."""

    data_set: DataSet
    token_ids: Sequence[TokenIds]
    """One array for each row."""


def read_tokenised(data: Data, *, model: Path, max_prompt_tokens: int) -> TokenisedDataSet:
    """Reads and tokenises for the model in that directory; refuses or filters long prompts.

    Raises `ConfigError`, for long prompts with their number and the first one's place.
    """
    data_set = read_data(data)
    tokenizer = PromptTokenizer(model, chat=data.chat)
    token_ids = tokenizer.encode([row.messages for row in data_set.rows])
    for row, ids in zip(data_set.rows, token_ids, strict=True):
        if len(ids) == 0:
            raise ConfigError(f"data.path: {row.place}: the prompt has no tokens")
    return _within_limit(data_set, token_ids, data, max_prompt_tokens)


def _within_limit(
    data_set: DataSet, token_ids: Sequence[TokenIds], data: Data, limit: int
) -> TokenisedDataSet:
    fits = [len(ids) <= limit for ids in token_ids]
    if all(fits):
        return TokenisedDataSet(data_set=data_set, token_ids=token_ids)
    longest = max(map(len, token_ids))
    first = data_set.rows[fits.index(False)]
    long = (
        f"{fits.count(False)} of {len(fits)} prompts are longer than "
        f"sampling.max_prompt_tokens = {limit} (first: {first.place}; longest: {longest} tokens)"
    )
    if data.long_prompts == "refuse":
        raise ConfigError(
            f'data.path: {long}: raise it to {longest}, or set data.long_prompts = "filter"'
        )
    if not any(fits):
        raise ConfigError(f"data.long_prompts: {long}: none is left, raise the limit")
    return TokenisedDataSet(
        data_set=_without(data_set, fits),
        token_ids=[ids for ids, fit in zip(token_ids, fits, strict=True) if fit],
    )


def _without(data_set: DataSet, fits: Sequence[bool]) -> DataSet:
    rows: list[Row] = [row for row, fit in zip(data_set.rows, fits, strict=True) if fit]
    counts = replace(data_set.counts, filtered=fits.count(False))
    return replace(data_set, rows=rows, counts=counts)
