"""One step that is hard on normalisers, trained under any option of the loss and any cut.

Two updates of two prompts: rollouts of 1 to 64 tokens, unjudged ones, truncated ones, a prompt of
which all are truncated, and in the second update a rollout without finite log-probs. The reference
model is another model than the policy, and `old_logprobs` are the engine's in half of the cases:
clips and the KL term count from the first update on.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dapod.config import RunConfig
from dapod.types import Group
from dapod.v1.buffer_pb2 import BatchPlan
from services.trainer.cut import SHARED_ROW_TOKENS, Row, cut, updates
from services.trainer.logprobs import LOGITS_BYTES
from services.trainer.ranks import Ranks
from services.trainer.reference import Reference
from tests.trainer.doubles import make_group, make_plan
from tests.trainer.harness import RecordingPolicy, Trained, make_config, train_step

LENGTHS = ([1, 60, 3, 9], [40, 2, 2, 33], [5, 5, 5, 5], [64, 1, 17, 30])
CORRECT = (
    [True, False, None, False],
    [True, True, False, False],
    [False, None, True, True],
    [False, True, False, False],
)
TRUNCATED = ([1], [0, 3], [0, 1, 2, 3], [0])
NORMALISERS = ("prompt", "token", "sequence", "constant")
FILTERS = ("off", "excluded", "counted")


def options(normaliser: str, overlong_filter: str) -> dict[str, Any]:
    """Of the algorithm: the two named, dual clip and KL on."""
    by_turns = NORMALISERS.index(normaliser) + FILTERS.index(overlong_filter)
    return {
        "loss_normaliser": normaliser,
        "overlong_filter": overlong_filter,
        "dual_clip": 3.0,
        "kl_coefficient": 0.1,
        "old_logprobs": ("rollout", "recompute")[by_turns % 2],
        "advantage_scale": ("std", "none")[by_turns // 2 % 2],
    }


CASES: Mapping[str, dict[str, Any]] = {
    f"{normaliser}, {overlong_filter}": options(normaliser, overlong_filter)
    for normaliser, overlong_filter in itertools.product(NORMALISERS, FILTERS)
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What must not change a gradient."""

    tokens_per_micro_batch: int = 128
    shared_row_tokens: int = SHARED_ROW_TOKENS
    """0 gives every rollout a row of its own."""
    zero_stage: int = 2
    logits_bytes: int = LOGITS_BYTES
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """More keys of the config's section."""
    seed: int | None = None
    """Shuffles the groups of each update and each rank's rows over its micro-batches."""
    shuffles: random.Random = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shuffles", random.Random(self.seed))


def make_groups() -> list[Group]:
    groups = [
        make_group(
            f"0-{i}", lengths, correct=CORRECT[i], truncated=TRUNCATED[i], prompt_tokens=3 + 4 * i
        )
        for i, lengths in enumerate(LENGTHS)
    ]
    groups[3].rollouts[2].logprobs[4] = float("nan")
    return groups


def case_config(model: Path, algorithm: Mapping[str, Any], layout: Layout) -> RunConfig:
    return make_config(
        model,
        algorithm=algorithm,
        trainer={
            "zero_stage": layout.zero_stage,
            "tokens_per_micro_batch": layout.tokens_per_micro_batch,
            **layout.trainer,
        },
    )


def train_case(
    model: Path, other_model: Path, ranks: Ranks, algorithm: Mapping[str, Any], layout: Layout
) -> Trained:
    """The gradients of both updates and the step's numbers, in fp32."""
    config = case_config(model, algorithm, layout)
    groups = make_groups()
    if layout.seed is not None:
        groups = [g for pair in (groups[:2], groups[2:]) for g in layout.shuffles.sample(pair, 2)]
    plan = make_plan(0, groups, 2)
    reference = None
    if config.algorithm.kl_coefficient:
        elsewhere = case_config(other_model, algorithm, layout)
        reference = Reference(elsewhere, ranks, dtype=torch.float32)
    return train_step(
        config,
        ranks,
        plan,
        groups,
        policy=RecordingPolicy(
            config, ranks, dtype=torch.float32, logits_bytes=layout.logits_bytes
        ),
        reference=reference,
        cut=_cut(plan, ranks, layout),
    )


def _cut(plan: BatchPlan, ranks: Ranks, layout: Layout) -> list[list[list[Row]]]:
    shares = [
        cut(
            groups,
            ranks=ranks.size,
            tokens_per_micro_batch=layout.tokens_per_micro_batch,
            shared_row_tokens=layout.shared_row_tokens,
        )[ranks.rank]
        for groups in updates(plan)
    ]
    return shares if layout.seed is None else [_shuffled(share, layout) for share in shares]


def _shuffled(share: list[list[Row]], layout: Layout) -> list[list[Row]]:
    """The same rows dealt at random to as many micro-batches; some may stay empty."""
    dealt: list[list[Row]] = [[] for _ in share]
    for row in sorted((row for rows in share for row in rows), key=repr):
        layout.shuffles.choice(dealt).append(row)
    return dealt
