"""All metrics of the trainer service. Only rank 0 serves them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PHASES = ("wait", "fetch", "old_logprobs", "update", "publish", "commit", "checkpoint")

_PUBLISH_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class TrainerMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"dapod_trainer_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"dapod_trainer_{name}", text, labels, registry=registry)

        self.step = gauge("step", "The rollout step being waited for or trained.")
        self.policy_version = gauge(
            "policy_version", "Number of the newest published policy; -1 before the first."
        )
        self.loss = gauge("loss", "Loss of the last step, mean over its updates.")
        self.entropy_nats = gauge(
            "entropy_nats", "Mean token entropy of the policy at the temperature, last step."
        )
        self.clip_fraction_ratio = gauge(
            "clip_fraction_ratio",
            "Share of trained tokens where the clip was binding in the last step, by bound.",
            ("bound",),
        )
        self.mismatch_kl_nats = gauge(
            "mismatch_kl_nats",
            "KL from the policy that sampled to the trainer's at the start of the last step; grows "
            "with staleness and with different numerics.",
        )
        self.grad_norm = gauge(
            "grad_norm", "Gradient norm before clipping, mean over the updates of the last step."
        )
        self.learning_rate = gauge("learning_rate", "Learning rate of the last step.")
        self.accuracy_ratio = gauge(
            "accuracy_ratio",
            "Share of correct rollouts among all judged since the cut before, uniform too.",
        )
        self.reward_mean = gauge(
            "reward_mean", "Mean reward of all rollouts judged since the cut before."
        )
        self.response_tokens_mean = gauge(
            "response_tokens_mean", "Mean response length of all rollouts since the cut before."
        )
        self.truncated_ratio = gauge(
            "truncated_ratio", "Share of rollouts since the cut before that hit the length limit."
        )
        self.staleness_mean = gauge(
            "staleness_mean", "Policy versions the last batch's groups were behind, mean."
        )
        self.staleness_max = gauge(
            "staleness_max", "Policy versions the oldest group of the last batch was behind."
        )
        self.evaluation_ratio = gauge(
            "evaluation_ratio",
            "Accuracy of the policy that was evaluated last, by metric: avg (avg@K), pass "
            "(pass@K), maj (maj@K); NaN before the first.",
            ("metric",),
        )
        self.evaluation_policy_version = gauge(
            "evaluation_policy_version", "Policy that was evaluated last; -1 before the first."
        )
        self.tokens_trained = counter(
            "tokens_trained_total", "Response tokens that carried loss, replayed steps included."
        )
        self.updates = counter("updates_total", "Optimiser updates, replayed steps included.")
        self.rollouts_dropped = counter(
            "rollouts_dropped_total",
            "Rollouts left out of the loss because the trainer's log-probs were not finite.",
        )
        self.phase_seconds = counter(
            "phase_seconds_total",
            "Time spent in each phase; `wait` is waiting for a batch and means too few rollouts.",
            ("phase",),
        )
        for phase in PHASES:
            self.phase_seconds.labels(phase)
        self.last_progress = gauge(
            "last_progress_timestamp_seconds",
            "When the trainer last finished something, in Unix time.",
        )
        self.policy_version.set(-1)
        self.evaluation_policy_version.set(-1)
        for metric in ("avg", "pass", "maj"):
            self.evaluation_ratio.labels(metric).set(math.nan)
        self.last_progress.set_to_current_time()
        self._of_a_step = {
            "loss": self.loss,
            "entropy_nats": self.entropy_nats,
            "mismatch_kl_nats": self.mismatch_kl_nats,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "accuracy": self.accuracy_ratio,
            "reward_mean": self.reward_mean,
            "response_tokens_mean": self.response_tokens_mean,
            "truncated_ratio": self.truncated_ratio,
            "staleness_mean": self.staleness_mean,
            "staleness_max": self.staleness_max,
        }
        for unknown in self._of_a_step.values():  # 0 would look like a collapse
            unknown.set(math.nan)
        self.publish_seconds = Histogram(
            "dapod_trainer_publish_seconds",
            "Time to write, sync and rename one policy version.",
            buckets=_PUBLISH_SECONDS,
            registry=registry,
        )

    def show_evaluation(self, row: Mapping[str, Any]) -> None:
        """The gauges of an evaluated policy, from its row in evaluations.jsonl."""
        self.evaluation_policy_version.set(row["policy_version"])
        for metric in ("avg", "pass", "maj"):
            value = row[f"{metric}_at_k"]
            self.evaluation_ratio.labels(metric).set(math.nan if value is None else value)

    def show(self, row: Mapping[str, float | int | None], rollouts_dropped: int) -> None:
        """The gauges of a trained step, from its row in steps.jsonl."""
        self.clip_fraction_ratio.labels("low").set(row["clip_fraction_low"] or 0.0)
        self.clip_fraction_ratio.labels("high").set(row["clip_fraction_high"] or 0.0)
        self.tokens_trained.inc(row["tokens_trained"] or 0)
        self.rollouts_dropped.inc(rollouts_dropped)
        for key, gauge in self._of_a_step.items():
            value = row[key]
            if value is not None:
                gauge.set(value)
