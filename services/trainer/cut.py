"""A batch plan -> ranks -> micro-batches -> rows, from the plan alone. Knows lengths, not tokens.

    plan ──updates()──► groups of one update ──cut()──► rows of each micro-batch of each rank

Rollouts, not groups, are dealt to ranks, in plan order and by tokens: each rank gets a contiguous
share and fetches few groups it does not need. Rollouts of a prompt on the same rank share a row, so
the prompt is computed once; rows are sorted by length, so a micro-batch pads little. All of it
follows from the plan, so every rank knows every other's cut without a word, and all run the same
number of micro-batches: a rank with fewer gets empty ones, because ZeRO-2 dies and ZeRO-3 hangs
otherwise. Nothing of it changes the gradient (invariant 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dapod.v1.buffer_pb2 import BatchPlan, PlannedGroup

Cut = list[list[list["Row"]]]
"""[rank][micro-batch][row]."""

SHARED_ROW_TOKENS = 1024
"""Longest row that several rollouts share: it needs an attention mask of its length squared, which
longer rows (where the prompt is a small part anyway) had better do without."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt with one or more of its rollouts behind it, before the payload is there."""

    group_id: str
    prompt_tokens: int
    rollouts: tuple[int, ...]
    """Indexes within the group."""
    response_tokens: tuple[int, ...]
    """Of each of them."""

    @property
    def fed(self) -> int:
        """Tokens the model reads: the last one of a response is predicted but never read."""
        return self.prompt_tokens + sum(self.response_tokens) - len(self.response_tokens)


def updates(plan: BatchPlan) -> list[Sequence[PlannedGroup]]:
    """The groups of each optimiser update, in order."""
    groups, size = list(plan.groups), plan.prompts_per_update
    return [groups[i : i + size] for i in range(0, len(groups), size)]


def cut(
    groups: Sequence[PlannedGroup],
    *,
    ranks: int,
    tokens_per_micro_batch: int,
    shared_row_tokens: int = SHARED_ROW_TOKENS,
) -> Cut:
    """One update's rows for every rank; all get equally many micro-batches, at least one."""
    longest = min(tokens_per_micro_batch, shared_row_tokens)
    shares = [
        _micro_batches(_share_prompts(share, longest), tokens_per_micro_batch)
        for share in _deal(groups, ranks)
    ]
    most = max(1, max(len(share) for share in shares))
    return [share + [[] for _ in range(most - len(share))] for share in shares]


def _deal(groups: Sequence[PlannedGroup], ranks: int) -> list[list[Row]]:
    """Contiguous shares of about equally many tokens: a rollout goes where its middle falls."""
    rows = [
        Row(group_id=g.group_id, prompt_tokens=g.prompt_tokens, rollouts=(i,), response_tokens=(n,))
        for g in groups
        for i, n in enumerate(g.response_tokens)
    ]
    total, before = sum(row.fed for row in rows), 0
    shares: list[list[Row]] = [[] for _ in range(ranks)]
    for row in rows:
        middle = 2 * before + row.fed
        shares[min(middle * ranks // (2 * max(total, 1)), ranks - 1)].append(row)
        before += row.fed
    return shares


def _share_prompts(rows: list[Row], longest: int) -> list[Row]:
    """Joins neighbours of one group while the row stays short."""
    joined: list[Row] = []
    for row in rows:
        both = _join(joined[-1], row) if joined and joined[-1].group_id == row.group_id else None
        if both and both.fed <= longest:
            joined[-1] = both
        else:
            joined.append(row)
    return joined


def _join(one: Row, other: Row) -> Row:
    return Row(
        group_id=one.group_id,
        prompt_tokens=one.prompt_tokens,
        rollouts=one.rollouts + other.rollouts,
        response_tokens=one.response_tokens + other.response_tokens,
    )


def _micro_batches(rows: list[Row], budget: int) -> list[list[Row]]:
    """Longest first, as many rows as fit the budget, padding included."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -row.fed):
        if not batches or (len(batches[-1]) + 1) * batches[-1][0].fed > budget:
            batches.append([])
        batches[-1].append(row)
    return batches
