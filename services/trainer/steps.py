"""`steps.jsonl`: one row for each trained step. The one place that says what each key means.

A row is written once, after its step was committed and before the checkpoint that contains it. A
trainer that resumes at checkpoint c cuts the file back to steps before c and keeps the rows it cut
in `steps.superseded.jsonl`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from dapod.v1.buffer_pb2 import BatchPlan, SamplingStats
from services.trainer.row_log import RowLog

ROWS = "steps.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainedStep:
    """What the updates of a step came to, over all ranks."""

    entropy_nats: float
    """Mean over trained tokens of the entropy of the policy's distribution at the temperature, in
    the forward pass that trained them."""
    clip_fraction_low: float
    """Share of trained tokens with ratio < 1 - clip_low and a negative advantage, over all updates.
    """
    clip_fraction_high: float
    """Share of trained tokens with ratio > 1 + clip_high and a positive advantage, over all
    updates."""
    grad_norm: float
    """Before clipping, mean over the updates."""
    loss: float
    """What was minimised: the loss of eq. 8 with its importance weights, plus the KL term where
    there is one; mean over the updates."""
    learning_rate: float
    mismatch_kl_nats: float
    """KL(pi_rollout || pi_trainer), mean over trained tokens of its k3 estimate, with the trainer's
    policy at the start of the step. With old_logprobs = "rollout" the first update's tokens only:
    the others are never seen by that policy."""
    reference_kl_nats: float | None
    """KL(policy || model.path), mean over trained tokens of its k3 estimate, in the forward pass
    that trained them; None with kl_coefficient = 0: there is no reference model then."""
    tokens_trained: int
    """Response tokens that carried loss: of judged rollouts that the overlong filter left,
    end-of-sequence included."""
    rollouts_dropped: int
    """Not in the row: rollouts with log-probs that are not finite, even asked alone; the others of
    their group were trained."""
    updates: int
    """Not in the row: optimiser updates of the step."""


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """Where the step's time went."""

    seconds_wait: float
    """Waiting for the batch's plan."""
    seconds_train: float
    """Fetching payloads, old log-probs and updates."""
    seconds_publish: float
    """Writing the next policy until it is visible."""
    seconds_evaluate: float
    """Time since the commit before during which a rollout pod held problems of an evaluation
    instead of sampling for training. A pod that is alone does nothing else meanwhile, so training
    waited that long; with more pods it had the others."""
    seconds_total: float
    """Since the row before (or since the trainer was ready): rows add up to the wall clock. A
    checkpoint counts to the step after it."""


def row(
    plan: BatchPlan, sampled: SamplingStats, trained: TrainedStep, seconds: StepSeconds
) -> dict[str, float | int | None]:
    """The row of a step, in the documented order."""
    staleness = [plan.step - group.policy_number for group in plan.groups]
    return {
        "step": plan.step,
        # The version this step published.
        "policy_version": plan.step + 1,
        **sampling_means(sampled),
        "entropy_nats": trained.entropy_nats,
        "clip_fraction_low": trained.clip_fraction_low,
        "clip_fraction_high": trained.clip_fraction_high,
        "grad_norm": trained.grad_norm,
        "loss": trained.loss,
        "learning_rate": trained.learning_rate,
        "mismatch_kl_nats": trained.mismatch_kl_nats,
        "reference_kl_nats": trained.reference_kl_nats,
        # Counts since the commit before, whichever step their groups go to.
        "groups_leased": sampled.groups_leased,
        "groups_kept": sampled.groups_kept,
        "groups_all_correct": sampled.groups_all_correct,
        "groups_all_wrong": sampled.groups_all_wrong,
        "groups_stale": sampled.groups_stale,
        "groups_failed": sampled.groups_failed,
        "tokens_generated": sampled.tokens_generated,
        "tokens_trained": trained.tokens_trained,
        # Over the batch's groups: this step - the oldest version among a group's tokens.
        "staleness_mean": sum(staleness) / len(staleness),
        "staleness_max": max(staleness),
        **asdict(seconds),
        "time_unix": time.time(),
    }


def sampling_means(sampled: SamplingStats) -> dict[str, float | None]:
    """Over everything sampled since the commit before, uniform groups included; null when that is
    nothing. So step s shows policy s, but for the groups that were in flight when it appeared."""
    return {
        "accuracy": _share(sampled.rollouts_correct, sampled.rollouts_judged),
        "reward_mean": _share(sampled.reward_sum, sampled.rollouts_judged),
        "response_tokens_mean": _share(sampled.tokens_generated, sampled.rollouts),
        "truncated_ratio": _share(sampled.rollouts_truncated, sampled.rollouts),
    }


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


class StepLog(RowLog):
    """The file of a run directory."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir / ROWS, key="step")
