"""A data set as a model reads it: token ids of every prompt, none longer than a limit.

For a run that is sampling.max_prompt_tokens, for `dapod evaluate` what the model's context leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dapod.config import ConfigError, Data
from dapod.dataset.reading import DataSet, read_data
from dapod.dataset.rows import Row
from dapod.prompt_tokens import PromptTokenizer
from dapod.types import TokenIds


@dataclass(frozen=True, kw_only=True)
class PromptLimit:
    """Most tokens of a prompt, and what to say of longer ones."""

    tokens: int
    name: str
    """What it follows from."""
    remedy: Callable[[int], str]
    """What to change for a longest prompt of so many tokens."""


@dataclass(frozen=True, kw_only=True)
class TokenisedDataSet:
    """The prompts of a run or an evaluation."""

    data_set: DataSet
    token_ids: Sequence[TokenIds]
    """One array for each row."""

    def within(
        self, limit: PromptLimit, long_prompts: Literal["refuse", "filter"]
    ) -> TokenisedDataSet:
        """Without the prompts beyond the limit, as `data.long_prompts` asks.

        Raises `ConfigError` with their number and the first one's place.
        """
        fits = [len(ids) <= limit.tokens for ids in self.token_ids]
        if all(fits):
            return self
        longest = max(map(len, self.token_ids))
        first = self.data_set.rows[fits.index(False)]
        long = (
            f"{fits.count(False)} of {len(fits)} prompts are longer than "
            f"{limit.name} (first: {first.place}; longest: {longest} tokens)"
        )
        if long_prompts == "refuse":
            raise ConfigError(
                f'data.path: {long}: {limit.remedy(longest)}, or set data.long_prompts = "filter"'
            )
        if not any(fits):
            raise ConfigError(f"data.long_prompts: {long}: none is left, {limit.remedy(longest)}")
        return TokenisedDataSet(
            data_set=_without(self.data_set, fits),
            token_ids=[ids for ids, fit in zip(self.token_ids, fits, strict=True) if fit],
        )


def read_tokenised(data: Data, *, model: Path, max_prompt_tokens: int) -> TokenisedDataSet:
    """A run's data set for the model in that directory; long prompts refused or filtered.

    Raises `ConfigError`.
    """
    limit = PromptLimit(
        tokens=max_prompt_tokens,
        name=f"sampling.max_prompt_tokens = {max_prompt_tokens}",
        remedy=lambda longest: f"raise it to {longest}",
    )
    return tokenise(data, model).within(limit, data.long_prompts)


def tokenise(data: Data, model: Path) -> TokenisedDataSet:
    """Reads and tokenises all of it, however long. Raises `ConfigError`."""
    data_set = read_data(data)
    token_ids = PromptTokenizer(model, chat=data.chat).encode(
        [row.messages for row in data_set.rows]
    )
    for row, ids in zip(data_set.rows, token_ids, strict=True):
        if len(ids) == 0:
            raise ConfigError(f"data.path: {row.place}: the prompt has no tokens")
    return TokenisedDataSet(data_set=data_set, token_ids=token_ids)


def _without(data_set: DataSet, fits: Sequence[bool]) -> DataSet:
    rows: list[Row] = [row for row, fit in zip(data_set.rows, fits, strict=True) if fit]
    counts = replace(data_set.counts, filtered=fits.count(False))
    return replace(data_set, rows=rows, counts=counts)
