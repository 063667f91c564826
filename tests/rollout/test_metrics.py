"""Idle time is right at every scrape."""

from __future__ import annotations

import math
import time

from prometheus_client import CollectorRegistry, generate_latest

from services.rollout.metrics import Idle, RolloutMetrics


def idle_seconds(registry: CollectorRegistry, reason: Idle) -> float:
    value = registry.get_sample_value("dapod_rollout_idle_seconds_total", {"reason": reason})
    assert value is not None
    return value


def test_idle_time_grows_without_anyone_ticking() -> None:
    registry = CollectorRegistry()
    RolloutMetrics(registry)
    first = idle_seconds(registry, Idle.NO_POLICY)
    deadline = time.monotonic() + 5
    while idle_seconds(registry, Idle.NO_POLICY) <= first:
        assert time.monotonic() < deadline, "the clock stands still"


def test_idle_time_goes_to_its_reason_and_stands_still_at_work() -> None:
    registry = CollectorRegistry()
    metrics = RolloutMetrics(registry)
    metrics.idle.because(Idle.REFUSED)
    before = idle_seconds(registry, Idle.NO_POLICY)
    metrics.idle.busy(True)
    refused = idle_seconds(registry, Idle.REFUSED)
    assert refused > 0
    assert idle_seconds(registry, Idle.REFUSED) == refused
    assert idle_seconds(registry, Idle.NO_POLICY) == before


def test_the_metrics_page_renders() -> None:
    registry = CollectorRegistry()
    RolloutMetrics(registry)
    page = generate_latest(registry).decode()
    assert 'dapod_rollout_idle_seconds_total{reason="buffer_away"} 0.0' in page
    assert "dapod_rollout_policy_version -1.0" in page


def test_counters_that_an_alert_rates_start_at_zero() -> None:
    registry = CollectorRegistry()
    RolloutMetrics(registry)
    page = generate_latest(registry).decode()
    assert 'dapod_rollout_load_failures_total{where="files"} 0.0' in page
    assert 'dapod_rollout_groups_total{disposition="kept"} 0.0' in page


def test_a_pod_that_sampled_shows_progress() -> None:
    registry = CollectorRegistry()
    metrics = RolloutMetrics(registry)
    name = "dapod_rollout_last_progress_timestamp_seconds"
    assert math.isnan(registry.get_sample_value(name))
    metrics.count_outputs(())
    assert time.time() - registry.get_sample_value(name) < 60
