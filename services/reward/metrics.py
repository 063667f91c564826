"""All metrics of the reward service."""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dapod.types import Outcome

_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class RewardMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.verifications = Counter(
            "dapod_reward_verifications_total",
            "Responses verified, by verifier and final outcome; "
            "timeout, killed and error are failures of the verifier and give no reward.",
            ["verifier", "outcome"],
            registry=registry,
        )
        self.verification_seconds = Histogram(
            "dapod_reward_verification_seconds",
            "Time workers spent on one response, a retry included, the wait for a worker not.",
            ["verifier"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "dapod_reward_wait_seconds",
            "Time one response waited for a free worker before its first attempt.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.retries = Counter(
            "dapod_reward_retries_total",
            "Verifications tried a second time on a fresh worker, by what the first try came to.",
            ["outcome"],
            registry=registry,
        )
        self.kills = Counter(
            "dapod_reward_kills_total",
            "Workers lost to a verification, by its outcome: timeout and error were killed by the "
            "pool, killed died by themselves (memory limit or a signal).",
            ["outcome"],
            registry=registry,
        )
        for outcome in Outcome:
            if not outcome.judged:  # a rate needs to see them at 0
                self.retries.labels(outcome=outcome)
                self.kills.labels(outcome=outcome)
        self.worker_start_failures = Counter(
            "dapod_reward_worker_start_failures_total",
            "Verifiers that did not load in time or at all, and workers that could not be forked.",
            registry=registry,
        )
        self.queue_depth = Gauge(
            "dapod_reward_queued_verifications",
            "Responses waiting for a free worker.",
            registry=registry,
        )
        self.workers = Gauge(
            "dapod_reward_workers",
            "Worker processes the pool is meant to have.",
            registry=registry,
        )
        self.workers_warm = Gauge(
            "dapod_reward_workers_warm",
            "Worker processes that have loaded the verifiers; fewer than dapod_reward_workers "
            "for more than a moment means that they do not start.",
            registry=registry,
        )
        self.workers_busy = Gauge(
            "dapod_reward_workers_busy",
            "Worker processes with a verification under way.",
            registry=registry,
        )
        self.last_progress = Gauge(
            "dapod_reward_last_progress_timestamp_seconds",
            "When a verification last came to an outcome, in Unix time; NaN before the first.",
            registry=registry,
        )
        self.last_progress.set(math.nan)
        self.calls_expired = Counter(
            "dapod_reward_calls_expired_total",
            "Score calls whose deadline passed before all their responses were verified.",
            registry=registry,
        )
