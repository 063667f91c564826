"""All metrics of the buffer service.

What the run has come to is read from Redis at each scrape (`StateCollector`): a restart of the
buffer loses none of it, and every replica tells the same. What this process did is counted here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dapod.types import Disposition, RunState
from services.buffer.records import Counts, Plan
from services.buffer.scripts import StoreAway

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0)
_VERSIONS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


@dataclass
class _Call:
    """The status a call ends with."""

    code: grpc.StatusCode = grpc.StatusCode.OK


class BufferMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.rpc_seconds = Histogram(
            "dapod_buffer_rpc_seconds",
            "Time to answer one call, by method and status code; NextBatch waits for its batch.",
            ["method", "code"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_staleness = Histogram(
            "dapod_buffer_batch_staleness_versions",
            "Staleness of each group in a batch when it was cut: the trainer's version minus the "
            "group's; above algorithm.max_staleness is a bug.",
            buckets=_VERSIONS,
            registry=registry,
        )

    @contextmanager
    def measured(self, method: str) -> Iterator[_Call]:
        """Times one call."""
        started, call = time.perf_counter(), _Call()
        try:
            yield call
        except BaseException:
            if call.code is grpc.StatusCode.OK:
                call.code = grpc.StatusCode.UNKNOWN
            raise
        finally:
            labelled = self.rpc_seconds.labels(method, call.code.name)
            labelled.observe(time.perf_counter() - started)

    def handed_out(self, plan: Plan) -> None:
        """A batch was cut."""
        for group in plan.groups:
            self.batch_staleness.observe(max(0, plan.step - group.policy_number))


class StateCollector(Collector):
    """The run as Redis has it, counted at scrape."""

    def __init__(self, counts: Callable[[], Counts]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        try:
            counts = self._counts()
        except StoreAway:
            yield _gauge("redis_up", "1 while Redis answers; without it nothing below is known.", 0)
            return
        yield _gauge("redis_up", "1 while Redis answers; without it nothing below is known.", 1)
        yield from _gauges(counts)
        yield from _counters(counts)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"dapod_buffer_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"dapod_buffer_{name}", text, value=value)


def _gauges(counts: Counts) -> Iterator[Metric]:
    groups = GaugeMetricFamily(
        "dapod_buffer_groups", "Groups by the one place each is in.", labels=["state"]
    )
    for place, number in sorted(counts.groups.items()):
        groups.add_metric([place], number)
    yield groups
    yield _gauge(
        "conservation_error_groups",
        "Groups lost or doubled, recounted from the keys; above 0 is a bug or a tampered Redis.",
        counts.conservation_error,
    )
    yield _gauge("payload_bytes", "Sampled groups held in Redis.", counts.payload_bytes)
    yield _gauge(
        "capacity_groups",
        "Leases a rollout with the newest policy could still get before the next step is trained.",
        counts.capacity,
    )
    version = -1 if counts.policy is None else counts.policy.number
    yield _gauge("policy_version", "Newest published policy; -1 before the first.", version)
    yield _gauge("next_step", "First step whose batch is not cut yet.", counts.next_step)
    yield _gauge(
        "checkpoint_step", "Steps before this one are safe on disk.", counts.checkpoint_step
    )
    yield _gauge("workers", "Rollout pods seen within two lease times.", len(counts.workers))
    yield _gauge("prompt_epoch", "Epoch of the data set that is being queued.", counts.epoch)
    yield _gauge(
        "run_finished",
        "1 once the run has ended and rollouts idle by intention.",
        counts.state is RunState.FINISHED,
    )


def _counters(counts: Counts) -> Iterator[Metric]:
    submitted = CounterMetricFamily(
        "dapod_buffer_groups_submitted",
        "Groups submitted, by what became of them; only kept ones are trained.",
        labels=["disposition"],
    )
    for disposition in Disposition:
        submitted.add_metric([disposition.value], counts.totals.get(disposition.value, 0))
    yield submitted
    for name, text in {
        "leases_granted": "Leases granted.",
        "leases_expired": "Leases that ran out: a rollout died, hung or lost its network.",
        "leases_returned": "Leases given back by rollouts that drained or failed.",
    }.items():
        yield _counter(name, text, counts.totals.get(name, 0))
    stale = counts.totals.get("stale", 0)
    yield _counter(
        "groups_stale", "Groups handed out staler than algorithm.max_staleness: a bug.", stale
    )
