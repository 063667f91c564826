"""A batch plan -> ranks -> micro-batches. Nothing here changes the gradient (invariant 7).

    plan ──updates()──► groups of one update ──cut()──► rows per rank and micro-batch
         ──assemble()──► tensors

A row is one rollout behind its prompt. Rows, not groups, are dealt to ranks, in plan order and by
tokens: each rank gets a contiguous share and fetches few groups it does not need. Within a rank
rows are sorted by length, so a micro-batch pads little. All of it follows from the plan, so every
rank knows every other's cut without a word, and all run the same number of micro-batches: a rank
with fewer gets empty ones, because ZeRO-2 dies and ZeRO-3 hangs otherwise.

Rows are padded on the right. Attention is causal, so no real token ever sees padding and no mask is
needed. The last token of a row is predicted but never fed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dapod.algorithm import group_advantages
from dapod.types import Group
from dapod.v1.buffer_pb2 import BatchPlan, PlannedGroup

Cut = list[list[list["Row"]]]
"""[rank][micro-batch][row]."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One rollout of the plan, before its payload is there."""

    group_id: str
    rollout: int
    prompt_tokens: int
    response_tokens: int

    @property
    def fed(self) -> int:
        """Tokens the model reads: all but the last."""
        return self.prompt_tokens + self.response_tokens - 1


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one forward pass takes. T response tokens of R rows lie flat, row after row."""

    input_ids: torch.Tensor
    """[R, L] int64, right-padded with 0."""
    rows: torch.Tensor
    """[T] int64: the row of each response token."""
    columns: torch.Tensor
    """[T] int64: the position whose logits predict it."""
    targets: torch.Tensor
    """[T] int64: its id."""
    rollout_logprobs: torch.Tensor
    """[T] float32: as the engine sampled it."""
    advantages: torch.Tensor
    """[T] float32; 0 where the rollout was not judged."""
    weights: torch.Tensor
    """[T] float32: the normaliser; 0 where a token carries no loss."""
    old_logprobs: torch.Tensor | None = None
    """[T] float32: by the trainer at the start of the step; None on the first update, where they
    are free."""

    def without(self, rows: torch.Tensor) -> MicroBatch:
        """The same shape with the content of `rows` ([R] bool) blanked and weightless."""
        dropped = rows[self.rows]
        return replace(
            self,
            input_ids=self.input_ids.masked_fill(rows[:, None], 0),
            targets=self.targets.masked_fill(dropped, 0),
            weights=self.weights.masked_fill(dropped, 0.0),
        )


def updates(plan: BatchPlan) -> list[Sequence[PlannedGroup]]:
    """The groups of each optimiser update, in order."""
    groups, size = list(plan.groups), plan.prompts_per_update
    return [groups[i : i + size] for i in range(0, len(groups), size)]


def cut(groups: Sequence[PlannedGroup], *, ranks: int, tokens_per_micro_batch: int) -> Cut:
    """One update's rows for every rank; all ranks get the same number of micro-batches, at least
    one."""
    shares = [_micro_batches(share, tokens_per_micro_batch) for share in _deal(groups, ranks)]
    most = max(1, max(len(share) for share in shares))
    return [share + [[] for _ in range(most - len(share))] for share in shares]


def _deal(groups: Sequence[PlannedGroup], ranks: int) -> list[list[Row]]:
    """Contiguous shares of about equally many tokens: a row goes where its middle falls."""
    rows = [
        Row(group_id=g.group_id, rollout=i, prompt_tokens=g.prompt_tokens, response_tokens=n)
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


def _micro_batches(rows: list[Row], budget: int) -> list[list[Row]]:
    """Longest first, as many rows as fit the budget, padding included."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -row.fed):
        if not batches or (len(batches[-1]) + 1) * batches[-1][0].fed > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def judged_tokens(rows: Iterator[Row], groups: Mapping[str, Group]) -> dict[str, int]:
    """Response tokens that carry loss, per group, among these rows."""
    counts: dict[str, int] = {}
    for row in rows:
        verdict = groups[row.group_id].rollouts[row.rollout].verdict
        judged = verdict is not None and verdict.reward is not None
        counts[row.group_id] = counts.get(row.group_id, 0) + judged * row.response_tokens
    return counts


def prompt_weights(tokens: Mapping[str, float]) -> dict[str, float]:
    """The normaliser `prompt` of eq. 8 for the groups of one update: 1 / (tokens of the group ·
    groups).

    Tokens of rollouts that could not be judged carry no loss and are not in the denominator.
    """
    return {g: 1.0 / (n * len(tokens)) if n else 0.0 for g, n in tokens.items()}


def advantages(groups: Mapping[str, Group]) -> dict[str, list[float | None]]:
    """Eq. 9 for every group; None for a rollout that could not be judged."""
    return {
        group_id: group_advantages(
            [r.verdict.reward if r.verdict else None for r in group.rollouts]
        )
        for group_id, group in groups.items()
    }


def assemble(
    rows: Sequence[Row],
    groups: Mapping[str, Group],
    advantage: Mapping[str, Sequence[float | None]],
    weight: Mapping[str, float],
) -> MicroBatch:
    """The tensors of one micro-batch; no rows make one weightless token, for a rank that only keeps
    step."""
    if not rows:
        return _empty()
    ids = np.zeros((len(rows), max(row.fed for row in rows)), dtype=np.int64)
    parts: list[tuple[np.ndarray, ...]] = []
    for i, row in enumerate(rows):
        group = groups[row.group_id]
        rollout = group.rollouts[row.rollout]
        _check_lengths(row, group)
        ids[i, : row.fed] = np.concatenate([group.prompt_token_ids, rollout.token_ids])[:-1]
        value, n = advantage[row.group_id][row.rollout], row.response_tokens
        parts.append(
            (
                np.full(n, i),
                np.arange(row.prompt_tokens - 1, row.fed),
                rollout.token_ids.astype(np.int64),
                rollout.logprobs,
                np.full(n, value or 0.0, dtype=np.float32),
                np.full(n, 0.0 if value is None else weight[row.group_id], dtype=np.float32),
            )
        )
    flat = [torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)]
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        rows=flat[0],
        columns=flat[1],
        targets=flat[2],
        rollout_logprobs=flat[3],
        advantages=flat[4],
        weights=flat[5],
    )


def _check_lengths(row: Row, group: Group) -> None:
    there = (len(group.prompt_token_ids), len(group.rollouts[row.rollout].token_ids))
    if there != (row.prompt_tokens, row.response_tokens):
        raise ValueError(
            f"group={row.group_id} rollout {row.rollout} has {there} prompt and response tokens, "
            f"the plan says {(row.prompt_tokens, row.response_tokens)}"
        )


def _empty() -> MicroBatch:
    index, nothing = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    return MicroBatch(
        input_ids=torch.zeros((1, 1), dtype=torch.int64),
        rows=index,
        columns=index,
        targets=index,
        rollout_logprobs=nothing,
        advantages=nothing,
        weights=nothing,
    )
