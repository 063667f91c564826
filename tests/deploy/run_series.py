"""What a run looks like to Prometheus: a healthy one, and the changes that make it another.

Values are promtool's: `a+bxn` starts at a and adds b for n minutes. Time starts at Unix 0, so a
timestamp that keeps up with the clock is `0+60xn`. `leaves` ends series as a target that left does.
"""

from __future__ import annotations

from collections.abc import Mapping

MINUTES = 180


def steady(value: float) -> str:
    return f"{value}x{MINUTES}"


def growing(by: float) -> str:
    return f"0+{by}x{MINUTES}"


def unknown() -> str:
    return " ".join(["NaN"] * MINUTES)


def changing(before: float, after: float, *, at: int = 30) -> str:
    return f"{before}x{at - 1} {after}x{MINUTES - at}"


def stuck(*, by: float, at: int = 30) -> str:
    """Grows until `at` and then stands still."""
    return f"0+{by}x{at - 1} {by * (at - 1)}x{MINUTES - at}"


HEALTHY: dict[str, str] = {
    'up{job="dapod-buffer",instance="b:1"}': steady(1),
    'up{job="dapod-reward",instance="w:1"}': steady(1),
    'up{job="dapod-rollout",instance="r:1"}': steady(1),
    'up{job="dapod-trainer",instance="t:1"}': steady(1),
    "dapod_buffer_redis_up": steady(1),
    "dapod_buffer_redis_memory_bytes": steady(400),
    "dapod_buffer_redis_memory_limit_bytes": steady(1000),
    "dapod_buffer_redis_append_only_ok": steady(1),
    "dapod_buffer_conservation_error_groups": steady(0),
    "dapod_buffer_groups_stale_total": steady(0),
    "dapod_buffer_run_finished": steady(0),
    "dapod_buffer_resumes_total": steady(0),
    "dapod_buffer_policy_version": growing(1),
    "dapod_buffer_staleness_limit_versions": steady(1),
    "dapod_buffer_evaluation_policy_version": steady(-1),
    'dapod_buffer_groups_submitted_total{disposition="kept"}': growing(10),
    'dapod_buffer_groups_submitted_total{disposition="all_wrong"}': growing(10),
    'dapod_buffer_groups_submitted_total{disposition="failed"}': growing(100),
    "dapod_reward_workers": steady(2),
    'dapod_reward_kills_total{outcome="timeout"}': growing(1),
    'dapod_reward_verifications_total{outcome="wrong"}': growing(200),
    'dapod_rollout_engine_running{instance="r:1"}': steady(1),
    'dapod_rollout_policy_version{instance="r:1"}': growing(1),
    'dapod_rollout_load_failures_total{instance="r:1",where="files"}': steady(0),
    'dapod_rollout_idle_seconds_total{instance="r:1",reason="refused"}': growing(20),
    'dapod_rollout_idle_seconds_total{instance="r:1",reason="buffer_away"}': growing(0),
    "dapod_trainer_step": growing(1),
    "dapod_trainer_last_progress_timestamp_seconds": growing(60),
    'dapod_trainer_phase_seconds_total{phase="wait"}': growing(20),
    'dapod_trainer_phase_seconds_total{phase="update"}': growing(40),
    "dapod_trainer_entropy_nats": steady(1),
    "dapod_trainer_mismatch_kl_nats": steady(0.02),
}
"""A step a minute: 20 s of waiting, 40 s of updates."""


def healthy(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """A key names a series by its metric and, where that is not enough, a label's value:
    `dapod_trainer_phase_seconds_total wait`."""
    series = dict(HEALTHY)
    for name, values in (changes or {}).items():
        series[_find(name)] = values
    return series


def _find(name: str) -> str:
    metric, _, label = name.partition(" ")
    found = [
        key
        for key in HEALTHY
        if key.partition("{")[0] == metric and (not label or f'"{label}"' in key)
    ]
    assert len(found) == 1, (name, found)
    return found[0]


def leaves(series: Mapping[str, str], *services: str) -> dict[str, str]:
    """All pods of the services go, without a word, after half an hour."""
    return {
        name: f"{values.rpartition('x')[0]}x29 stale" if _is_of(name, services) else values
        for name, values in series.items()
    }


def without(series: Mapping[str, str], *services: str) -> dict[str, str]:
    """The services were never there."""
    return {name: values for name, values in series.items() if not _is_of(name, services)}


def _is_of(name: str, services: tuple[str, ...]) -> bool:
    return name.startswith(
        tuple(p for s in services for p in (f"dapod_{s}_", f'up{{job="dapod-{s}"'))
    )


def named(series: Mapping[str, str], namespace: str) -> dict[str, str]:
    """The same run in a namespace of its own."""
    return {_with_label(name, namespace): values for name, values in series.items()}


def _with_label(name: str, namespace: str) -> str:
    metric, brace, labels = name.partition("{")
    label = f'namespace="{namespace}"'
    return f"{metric}{{{label},{labels}" if brace else f"{metric}{{{label}}}"
