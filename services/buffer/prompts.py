"""The prompts of a run: every row once an epoch, in an order that follows from the seed alone.

A group's identity is `<epoch>-<row>`. Order and tokens are computed, never stored: any replica can
answer for any identity, and Redis holds ids only.

Example: seed 0 and 200 rows give `0-57, 0-12, ...` and, 200 prompts on, `1-103, ...`.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dapod.config import Data, RunConfig
from dapod.dataset.reading import DataSet
from dapod.dataset.tokenised import read_tokenised
from dapod.types import TokenIds

log = logging.getLogger("dapod.buffer")


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

    def __init__(
        self, prompts: Sequence[Prompt], *, seed: int, digest: str = "", counts: str = ""
    ) -> None:
        self._prompts = prompts
        self._seed = seed
        self.digest = digest
        """Of the rows: another data set under the same run is refused."""
        self.counts = counts
        """What became of the rows of the data set, in words."""
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
    prompts, data_set = read_prompts(config, config.data)
    return Prompts(
        prompts,
        seed=config.run.seed,
        digest=data_set.digest(),
        counts=str(data_set.counts),
    )


def read_prompts(config: RunConfig, data: Data) -> tuple[list[Prompt], DataSet]:
    """The prompts of one data set in its own order."""
    tokenised = read_tokenised(
        data,
        model=Path(config.model.path),
        max_prompt_tokens=config.sampling.max_prompt_tokens,
    )
    data_set = tokenised.data_set
    log.info("data set %s", data_set)
    prompts = [
        Prompt(token_ids=ids, answer=row.answer)
        for ids, row in zip(tokenised.token_ids, data_set.rows, strict=True)
    ]
    return prompts, data_set
