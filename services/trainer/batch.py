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

_SHARED = 0
"""The number of no rollout: the prompt's tokens, and padding, which no real token sees."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one forward pass takes. T response tokens of R rows lie flat, rollout after rollout.

    Its N rollouts are numbered from 1, in that order.
    """

    input_ids: torch.Tensor
    """[R, L] int64, right-padded with 0."""
    positions: torch.Tensor
    """[R, L] int64: each rollout continues its prompt."""
    mask: torch.Tensor | None
    """[R, 1, L, L] bool, True where a query (second to last) sees a key; None is causal."""
    segments: torch.Tensor
    """[R, L] int64: the rollout that a token was fed for; 0 is the prompt, or padding."""
    places: torch.Tensor
    """[N + 1] int64: which of its row's rollouts each one is, from 0; the first, of none, is -1."""
    rows: torch.Tensor
    """[T] int64: the row of each response token."""
    rollouts: torch.Tensor
    """[T] int64: its rollout; 0 for the one token of a micro-batch without rows."""
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
    """[T] float32: by the trainer at the start of the step; None on the first update, which gets
    them free."""

    def having(self, tokens: torch.Tensor) -> torch.Tensor:
        """[N + 1] bool: the rollouts with one of `tokens` ([T] bool)."""
        found = torch.zeros(len(self.places), dtype=torch.bool)
        found[self.rollouts[tokens]] = True
        return found & (self.places >= 0)

    def alone(self, place: int) -> MicroBatch:
        """Of every row the rollout at that place, with its prompt and nothing else in the row."""
        return self.without((self.places != place) & (self.places >= 0))

    def without(self, rollouts: torch.Tensor) -> MicroBatch:
        """The same shape with `rollouts` ([N + 1] bool) blanked and weightless.

        The prompt goes with the last of its row.
        """
        gone = rollouts[self.rollouts]
        empty = torch.ones(len(self.input_ids), dtype=torch.bool)
        empty[self.rows[~gone]] = False
        return replace(
            self,
            input_ids=self.input_ids.masked_fill(empty[:, None] | rollouts[self.segments], 0),
            targets=self.targets.masked_fill(gone, 0),
            # Not by their weight alone: NaN times zero is NaN.
            rollout_logprobs=self.rollout_logprobs.masked_fill(gone, 0.0),
            weights=self.weights.masked_fill(gone, 0.0),
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
    segments, places = np.full(shape, _SHARED), [-1]
    tokens = [_nothing()] if not rows else []
    for i, row in enumerate(rows):
        group = groups[row.group_id]
        _check_lengths(row, group)
        p = at = row.prompt_tokens
        ids[i, :p], positions[i, :p] = group.prompt_token_ids, np.arange(p)
        for place, index in enumerate(row.rollouts):
            number = len(places)
            places.append(place)
            rollout, value = group.rollouts[index], advantage[row.group_id][index]
            share = weight[row.group_id][index]
            n = len(rollout.token_ids)
            end = at + n - 1
            ids[i, at:end], positions[i, at:end] = rollout.token_ids[:-1], p + np.arange(n - 1)
            segments[i, at:end] = number
            tokens.append(
                (
                    np.full(n, i),
                    np.full(n, number),
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
        segments=torch.from_numpy(segments),
        places=torch.tensor(places),
        rows=flat[0],
        rollouts=flat[1],
        columns=flat[2],
        targets=flat[3],
        rollout_logprobs=flat[4],
        advantages=flat[5],
        weights=flat[6],
    )


def _mask(segments: npt.NDArray[np.int64]) -> torch.Tensor:
    """A token sees its prompt and what came before it in its own rollout."""
    query, key = segments[:, :, None], segments[:, None, :]
    causal = np.tri(segments.shape[1], dtype=np.bool_)
    return torch.from_numpy((causal & ((key == _SHARED) | (key == query)))[:, None])


def _nothing() -> tuple[npt.NDArray[np.generic], ...]:
    index, number = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32)
    return index, index, index, index, number, number, number


def _check_lengths(row: Row, group: Group) -> None:
    tokens = tuple(len(group.rollouts[index].token_ids) for index in row.rollouts)
    if (len(group.prompt_token_ids), tokens) != (row.prompt_tokens, row.response_tokens):
        raise ValueError(
            f"group={row.group_id} has {len(group.prompt_token_ids)} prompt tokens and rollouts of "
            f"{tokens}, the plan says {row.prompt_tokens} and {row.response_tokens}"
        )
