"""All metrics of the rollout service. vLLM's own are exported beside them, unchanged."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from dapod.types import Disposition
from services.rollout.engine import Output

_TOKENS = (8, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 20480, 32768)
_SCORE_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_LOAD_SECONDS = (0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GROUP_SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Idle(StrEnum):
    """Why nothing is in flight."""

    NO_POLICY = "no_policy"
    REFUSED = "refused"
    LOADING = "loading"
    FINISHED = "finished"
    BUFFER_AWAY = "buffer_away"


class IdleClock(Collector):
    """Seconds without a group in flight, by reason; right at every scrape, with nothing ticking."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(Idle, 0.0)
        self._reason = Idle.NO_POLICY
        self._busy = False
        self._since = time.monotonic()

    def because(self, reason: Idle) -> None:
        """Whenever nothing is in flight from now on, it is because of `reason`."""
        with self._lock:
            self._account()
            self._reason = reason

    def busy(self, busy: bool) -> None:
        """Whether anything is in flight."""
        with self._lock:
            self._account()
            self._busy = busy

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "dapod_rollout_idle_seconds",
            "Time with no group in flight, by reason: no_policy, refused (the staleness rule), "
            "loading (a policy, or the engine's start), finished, buffer_away.",
            labels=["reason"],
        )
        with self._lock:
            self._account()
            for reason, seconds in self._seconds.items():
                family.add_metric([reason.value], seconds)
        yield family

    def _account(self) -> None:
        now = time.monotonic()
        if not self._busy:
            self._seconds[self._reason] += now - self._since
        self._since = now


class RolloutMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.idle = IdleClock()
        registry.register(self.idle)
        self.tokens = Counter(
            "dapod_rollout_tokens_generated_total",
            "Response tokens of finished requests, those of lost or returned leases included.",
            registry=registry,
        )
        self.response_tokens = Histogram(
            "dapod_rollout_response_tokens",
            "Tokens of one response, end-of-sequence token included.",
            buckets=_TOKENS,
            registry=registry,
        )
        self.truncated = Counter(
            "dapod_rollout_truncated_total",
            "Responses cut at the length limit, by the engine's own finish reason.",
            registry=registry,
        )
        self.in_flight = Gauge(
            "dapod_rollout_groups_in_flight",
            "Leases being worked on: sampled, scored or submitted.",
            registry=registry,
        )
        self.groups = Counter(
            "dapod_rollout_groups_total",
            "Leases ended, by what became of them: the buffer's disposition, or returned (by us), "
            "or lost (expired while it was sampled).",
            ["disposition"],
            registry=registry,
        )
        for disposition in (*Disposition, "returned", "lost"):
            self.groups.labels(disposition)
        self.group_seconds = Histogram(
            "dapod_rollout_group_seconds",
            "Time from a lease to the answer to its submission.",
            buckets=_GROUP_SECONDS,
            registry=registry,
        )
        self.score_seconds = Histogram(
            "dapod_rollout_score_seconds",
            "Time the reward service took for one group, waits for it included.",
            buckets=_SCORE_SECONDS,
            registry=registry,
        )
        self.policy_version = Gauge(
            "dapod_rollout_policy_version",
            "Number of the policy sampled from; -1 before the first load.",
            registry=registry,
        )
        self.policy_version.set(-1)
        self.load_seconds = Histogram(
            "dapod_rollout_load_seconds",
            "Time of one change-over, from the last group finished to ready; the first one starts "
            "the engine.",
            buckets=_LOAD_SECONDS,
            registry=registry,
        )
        self.load_failures = Counter(
            "dapod_rollout_load_failures_total",
            "Policies not loaded, by where it failed: files (missing, changed or of another shape; "
            "the engine was not touched) or engine (it must be restarted).",
            ["where"],
            registry=registry,
        )
        for where in ("files", "engine"):  # a rate needs to see them at 0
            self.load_failures.labels(where)
        self.last_progress = Gauge(
            "dapod_rollout_last_progress_timestamp_seconds",
            "When this pod last sampled a group or loaded a policy, in Unix time; NaN before.",
            registry=registry,
        )
        self.last_progress.set(math.nan)
        self.engine_running = Gauge(
            "dapod_rollout_engine_running",
            "1 while the engine can sample; 0 before the first load, during one, after a failure.",
            registry=registry,
        )

    def count_outputs(self, outputs: tuple[Output, ...]) -> None:
        """Counts what one request sampled."""
        self.last_progress.set_to_current_time()
        for output in outputs:
            tokens = len(output.rollout.token_ids)
            self.tokens.inc(tokens)
            self.response_tokens.observe(tokens)
            self.truncated.inc(output.rollout.truncated)
