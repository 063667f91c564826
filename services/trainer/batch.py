"""Rows and payloads -> the tensors of a micro-batch, every token with its advantage and weight.

A row is a prompt with some of its rollouts behind it:

    tokens     prompt            first rollout    second rollout   padding
    positions  0 .. p-1          p, p+1, ..       p, p+1, ..
    sees       itself so far     prompt, itself   prompt, itself

Where every row holds a single rollout, attention is plainly causal: padding on the right is seen by
no real token, and no mask is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from dapod.algorithm import group_advantages
from dapod.types import Group
from services.trainer.cut import Row

_PROMPT, _PADDING = 0, -1


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one forward pass takes. T response tokens of R rows lie flat, rollout after rollout."""

    input_ids: torch.Tensor
    """[R, L] int64, right-padded with 0."""
    positions: torch.Tensor
    """[R, L] int64: each rollout continues its prompt."""
    mask: torch.Tensor | None
    """[R, 1, L, L] bool, True where a query (second to last) sees a key; None is causal."""
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
    rollouts: torch.Tensor
    """[R] int64: rollouts in each row."""
    old_logprobs: torch.Tensor | None = None
    """[T] float32: by the trainer at the start of the step; None on the first update, which gets
    them free."""

    def without(self, rows: torch.Tensor) -> MicroBatch:
        """The same shape with the content of `rows` ([R] bool) blanked and weightless."""
        dropped = rows[self.rows]
        return replace(
            self,
            input_ids=self.input_ids.masked_fill(rows[:, None], 0),
            targets=self.targets.masked_fill(dropped, 0),
            weights=self.weights.masked_fill(dropped, 0.0),
        )


def advantages(
    groups: Mapping[str, Group], *, scale: Literal["std", "none"]
) -> dict[str, list[float | None]]:
    """Eq. 9 for every group; None for a rollout that could not be judged."""
    return {
        group_id: group_advantages(
            [r.verdict.reward if r.verdict else None for r in group.rollouts], scale=scale
        )
        for group_id, group in groups.items()
    }


def assemble(
    rows: Sequence[Row],
    groups: Mapping[str, Group],
    advantage: Mapping[str, Sequence[float | None]],
    weight: Mapping[str, Sequence[float]],
) -> MicroBatch:
    """The tensors of one micro-batch; without rows, one weightless token, only to keep step.

    `advantage` and `weight` are of each rollout, by group: each token's are its rollout's.
    """
    shape = (max(len(rows), 1), max((row.fed for row in rows), default=1))
    ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    segments = np.full(shape, _PADDING)
    tokens = [_nothing()] if not rows else []
    for i, row in enumerate(rows):
        group = groups[row.group_id]
        _check_lengths(row, group)
        p = at = row.prompt_tokens
        ids[i, :p], positions[i, :p] = group.prompt_token_ids, np.arange(p)
        segments[i, :p] = _PROMPT
        for segment, index in enumerate(row.rollouts, start=1):
            rollout, value = group.rollouts[index], advantage[row.group_id][index]
            share = weight[row.group_id][index]
            n = len(rollout.token_ids)
            end = at + n - 1
            ids[i, at:end], positions[i, at:end] = rollout.token_ids[:-1], p + np.arange(n - 1)
            segments[i, at:end] = segment
            tokens.append(
                (
                    np.full(n, i),
                    # The prompt's last position predicts the first token of every rollout.
                    np.concatenate([[p - 1], np.arange(at, end)]),
                    rollout.token_ids.astype(np.int64),
                    rollout.logprobs,
                    np.full(n, value or 0.0, dtype=np.float32),
                    np.full(n, share, dtype=np.float32),
                )
            )
            at = end
    flat = [torch.from_numpy(np.concatenate(column)) for column in zip(*tokens, strict=True)]
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        mask=_mask(segments) if any(len(row.rollouts) > 1 for row in rows) else None,
        rows=flat[0],
        columns=flat[1],
        targets=flat[2],
        rollout_logprobs=flat[3],
        advantages=flat[4],
        weights=flat[5],
        rollouts=torch.tensor([len(row.rollouts) for row in rows] or [0]),
    )


def _mask(segments: npt.NDArray[np.int64]) -> torch.Tensor:
    """A token sees its prompt and what came before it in its own rollout."""
    query, key = segments[:, :, None], segments[:, None, :]
    causal = np.tri(segments.shape[1], dtype=np.bool_)
    return torch.from_numpy((causal & ((key == _PROMPT) | (key == query)))[:, None])


def _nothing() -> tuple[npt.NDArray[np.generic], ...]:
    index, number = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    return index, index, index, number, number, number


def _check_lengths(row: Row, group: Group) -> None:
    tokens = tuple(len(group.rollouts[index].token_ids) for index in row.rollouts)
    if (len(group.prompt_token_ids), tokens) != (row.prompt_tokens, row.response_tokens):
        raise ValueError(
            f"group={row.group_id} has {len(group.prompt_token_ids)} prompt tokens and rollouts of "
            f"{tokens}, the plan says {row.prompt_tokens} and {row.response_tokens}"
        )
