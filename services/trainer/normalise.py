"""Which rollouts carry loss, and the weight of each of their tokens in an update.

A normaliser needs all rollouts of the update, wherever they are trained. Their lengths stand in the
plan, which every rank has; whether a rollout is counted stands in its payload, which one rank has.
So the ranks add up one flag for each rollout and then compute the same weights, in float64. The
formulas are `dapod.algorithm.NORMALISERS`; nothing here knows tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from dapod.algorithm import NORMALISERS, carries_loss, is_counted
from dapod.config import RunConfig
from dapod.types import Group, Rollout
from dapod.v1.buffer_pb2 import PlannedGroup
from services.trainer.cut import Row

Sum = Callable[[Sequence[float]], list[float]]
"""Element-wise over all ranks: `Ranks.sum`."""


class Normaliser:
    """`algorithm.loss_normaliser` with `algorithm.overlong_filter`."""

    def __init__(self, config: RunConfig) -> None:
        self._formula = NORMALISERS[config.algorithm.loss_normaliser]
        self._filter = config.algorithm.overlong_filter
        self._max_response_tokens = config.sampling.max_response_tokens

    def weights(
        self,
        planned: Sequence[PlannedGroup],
        rows: Iterable[Row],
        groups: Mapping[str, Group],
        sum_over_ranks: Sum,
    ) -> dict[str, list[float]]:
        """Of one update's groups: by group, the weight of each token of each rollout.

        `rows` are this rank's, `groups` their payloads; called on all ranks. A rollout that carries
        no loss gets weight 0; of another rank's rollouts that is not known here nor needed.
        """
        counted = self._counted(planned, rows, groups, sum_over_ranks)
        weights = self._formula(counted, self._max_response_tokens)
        return {
            line.group_id: self._masked(groups.get(line.group_id), of_group)
            for line, of_group in zip(planned, weights, strict=True)
        }

    def _counted(
        self,
        planned: Sequence[PlannedGroup],
        rows: Iterable[Row],
        groups: Mapping[str, Group],
        sum_over_ranks: Sum,
    ) -> list[list[int]]:
        """[group][rollout] tokens in the denominator, the same on every rank."""
        own = {(row.group_id, index) for row in rows for index in row.rollouts}
        every = [(g.group_id, i, n) for g in planned for i, n in enumerate(g.response_tokens)]
        flags = sum_over_ranks(
            [
                float((id_, i) in own and self._is_counted(groups[id_].rollouts[i]))
                for id_, i, _ in every
            ]
        )
        tokens = iter(n if flag else 0 for (_, _, n), flag in zip(every, flags, strict=True))
        return [[next(tokens) for _ in group.response_tokens] for group in planned]

    def _masked(self, group: Group | None, weights: list[float]) -> list[float]:
        if group is None:
            return weights
        return [
            weight if self._carries_loss(rollout) else 0.0
            for rollout, weight in zip(group.rollouts, weights, strict=True)
        ]

    def _is_counted(self, rollout: Rollout) -> bool:
        return is_counted(
            judged=_judged(rollout), truncated=rollout.truncated, overlong_filter=self._filter
        )

    def _carries_loss(self, rollout: Rollout) -> bool:
        return carries_loss(
            judged=_judged(rollout), truncated=rollout.truncated, overlong_filter=self._filter
        )


def _judged(rollout: Rollout) -> bool:
    return rollout.verdict is not None and rollout.verdict.reward is not None
