"""The prompts of a run: every row once an epoch, in an order that follows from the seed alone.

A group's identity is `<epoch>-<row>`. Order and tokens are computed, never stored: any replica can
answer for any identity, and Redis holds ids only.

Example: seed 0 and 200 rows give `0-57, 0-12, ...` and, 200 prompts on, `1-103, ...`.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dapod.config import ConfigError, RunConfig
from dapod.dataset import Row, read_rows
from dapod.prompt_tokens import PromptTokenizer
from dapod.types import TokenIds


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One row, ready to be leased."""

    token_ids: TokenIds
    answer: str


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """The next prompt to queue."""

    epoch: int
    position: int


class Prompts:
    """Rows by identity, and identities by place in the order."""

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, digest: str = "") -> None:
        self._prompts = prompts
        self._seed = seed
        self.digest = digest
        """Of the rows: another data set under the same run is refused."""
        self._permutation = functools.lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        return len(self._prompts)

    def next_ids(self, cursor: Cursor, count: int) -> tuple[list[str], Cursor]:
        """`count` identities from the cursor on, and the cursor behind them."""
        start = self.order(cursor)
        ids = []
        for order in range(start, start + count):
            epoch, position = divmod(order, len(self))
            ids.append(f"{epoch}-{self._permutation(epoch)[position]}")
        epoch, position = divmod(start + count, len(self))
        return ids, Cursor(epoch=epoch, position=position)

    def order(self, cursor: Cursor) -> int:
        """Place in the order of all prompts of all epochs."""
        return cursor.epoch * len(self) + cursor.position

    def get(self, group_id: str) -> Prompt:
        """The prompt of an identity; raises `KeyError` for one that cannot be."""
        epoch, _, row = group_id.partition("-")
        if not (epoch.isdecimal() and row.isdecimal()) or f"{int(epoch)}-{int(row)}" != group_id:
            raise KeyError(group_id)
        if int(row) >= len(self):
            raise KeyError(group_id)
        return self._prompts[int(row)]

    def _shuffle(self, epoch: int) -> list[int]:
        # Python's own generator: its shuffle is unchanged since 3.2, numpy's may change.
        rows = list(range(len(self)))
        random.Random(f"{self._seed}/{epoch}").shuffle(rows)
        return rows


def load_prompts(config: RunConfig) -> Prompts:
    """Reads and tokenises the data set. Raises `ConfigError`, naming prompts too long."""
    rows = read_rows(config.data)
    tokenizer = PromptTokenizer(Path(config.model.path), chat=config.data.chat)
    token_ids = tokenizer.encode([row.message for row in rows])
    _check_lengths(token_ids, config)
    prompts = [
        Prompt(token_ids=ids, answer=row.answer) for ids, row in zip(token_ids, rows, strict=True)
    ]
    return Prompts(prompts, seed=config.run.seed, digest=_digest(rows))


def _check_lengths(token_ids: Sequence[TokenIds], config: RunConfig) -> None:
    limit = config.sampling.max_prompt_tokens
    long = [row for row, ids in enumerate(token_ids, 1) if len(ids) > limit]
    if long:
        longest = max(map(len, token_ids))
        raise ConfigError(
            f"data.path: {len(long)} of {len(token_ids)} prompts are longer than "
            f"sampling.max_prompt_tokens = {limit} (first: row {long[0]}; longest: {longest} "
            f"tokens): raise it to {longest}, or leave those rows out"
        )
    if any(len(ids) == 0 for ids in token_ids):
        raise ConfigError("data.path: a prompt is empty")


def _digest(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.message}\0{row.answer}\0".encode())
    return digest.hexdigest()[:16]
