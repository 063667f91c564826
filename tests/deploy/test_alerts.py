"""Every alert fires when it should, and none when a run is well, finished, paused or waiting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.deploy.promtool import DEPLOY, RULES, firing, needs_promtool, promtool, summaries
from tests.deploy.run_series import (
    changing,
    growing,
    healthy,
    leaves,
    named,
    steady,
    stuck,
    unknown,
    without,
)

ALERTS = {
    rule["alert"]: rule
    for file in RULES
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}

TROUBLE: dict[str, tuple[str, dict[str, str]]] = {
    "most groups are uniform": (
        "AcceptanceCollapsed",
        healthy({"dapod_buffer_groups_submitted_total all_wrong": growing(200)}),
    ),
    "entropy falls": ("EntropyCollapse", healthy({"dapod_trainer_entropy_nats": changing(1, 0.2)})),
    "the engine has other weights": (
        "EngineMismatch",
        healthy({"dapod_trainer_mismatch_kl_nats": steady(0.5)}),
    ),
    "the trainer hangs": (
        "TrainerStalled",
        healthy({"dapod_trainer_last_progress_timestamp_seconds": stuck(by=60)}),
    ),
    "the trainer hangs in its first step": (
        "TrainerStalled",
        healthy(
            {
                "dapod_trainer_step": steady(0),
                "dapod_trainer_last_progress_timestamp_seconds": steady(60),
            }
        ),
    ),
    "the trainer crashes again and again": (
        "TrainerRestarts",
        # Each of its lives is too short to be scraped.
        without(healthy({"dapod_buffer_resumes_total": "0x29 0+1x9 9x141"}), "trainer"),
    ),
    "the trainer waits": (
        "TrainerStarved",
        healthy({"dapod_trainer_phase_seconds_total wait": growing(80)}),
    ),
    "rollouts are refused": (
        "RolloutStarved",
        healthy({"dapod_rollout_idle_seconds_total refused": growing(50)}),
    ),
    "rollouts do not reach the buffer": (
        "RolloutStarved",
        healthy({"dapod_rollout_idle_seconds_total buffer_away": growing(50)}),
    ),
    "a pod is left behind": ("VersionSkew", healthy({"dapod_rollout_policy_version": stuck(by=1)})),
    "a pod cannot load": (
        "VersionSkew",
        healthy({"dapod_rollout_load_failures_total": growing(6)}),
    ),
    "verifiers are killed": ("VerifierKills", healthy({"dapod_reward_kills_total": growing(10)})),
    "Redis fills up": ("RedisMemory", healthy({"dapod_buffer_redis_memory_bytes": steady(900)})),
    "the disk of Redis is full": (
        "AppendOnlyFileFailing",
        healthy({"dapod_buffer_redis_append_only_ok": steady(0)}),
    ),
    "a group is lost": (
        "ConservationBroken",
        healthy({"dapod_buffer_conservation_error_groups": steady(1)}),
    ),
    "a group is too old": (
        "ConservationBroken",
        healthy({"dapod_buffer_groups_stale_total": changing(0, 1)}),
    ),
    "the trainer does not answer": ("MetricsAbsent", healthy({"up dapod-trainer": steady(0)})),
    "the buffer is gone": ("MetricsAbsent", without(healthy(), "buffer")),
    "reward is gone": ("MetricsAbsent", without(healthy(), "reward")),
    "Redis is away": ("MetricsAbsent", healthy({"dapod_buffer_redis_up": steady(0)})),
}

# In its last ten minutes everything was about to fire: the end must silence all of it.
FINISHED = healthy(
    {
        "dapod_buffer_run_finished": changing(0, 1),
        "dapod_buffer_policy_version": stuck(by=1),
        "dapod_rollout_policy_version": stuck(by=1, at=20),
        "dapod_buffer_groups_submitted_total kept": stuck(by=10),
        "dapod_buffer_groups_submitted_total all_wrong": "0+10x19 700+500x9 5200x150",
        "dapod_buffer_groups_submitted_total failed": stuck(by=1),
        "dapod_reward_verifications_total": stuck(by=200),
        "dapod_rollout_idle_seconds_total refused": "0+20x13 320+59x15 1205x150",
        "dapod_trainer_last_progress_timestamp_seconds": stuck(by=60),
        "dapod_trainer_step": stuck(by=1),
        "dapod_trainer_phase_seconds_total wait": "0+20x19 600+200x9 2400x150",
        "dapod_trainer_phase_seconds_total update": stuck(by=40),
        "dapod_trainer_entropy_nats": changing(1, 0.2, at=20),
        "dapod_trainer_mismatch_kl_nats": changing(0.02, 5, at=24),
        "dapod_reward_kills_total": "0+1x24 25+50x4 225x150",
        "dapod_buffer_redis_memory_bytes": changing(400, 900, at=28),
        "dapod_buffer_resumes_total": changing(0, 5, at=28),
    }
)
# In its last minutes much was about to fire, and then it was paused.
PAUSED = healthy(
    {
        "dapod_buffer_policy_version": stuck(by=1),
        "dapod_rollout_policy_version": stuck(by=1),
        "dapod_buffer_groups_submitted_total kept": stuck(by=10),
        "dapod_buffer_groups_submitted_total all_wrong": "0+10x19 700+500x9 5200x150",
        "dapod_buffer_groups_submitted_total failed": stuck(by=1),
        "dapod_reward_verifications_total": stuck(by=200),
        "dapod_reward_kills_total": "0+1x24 25+50x4 225x150",
        "dapod_trainer_mismatch_kl_nats": changing(0.02, 5, at=24),
        "dapod_trainer_entropy_nats": changing(1, 0.2, at=20),
        "dapod_buffer_resumes_total": changing(0, 1),
    }
)
WAITS_FROM_HALF_AN_HOUR_ON = {
    "dapod_trainer_step": stuck(by=1),
    "dapod_trainer_phase_seconds_total wait": "0+20x29 600+60x150",
    "dapod_trainer_phase_seconds_total update": stuck(by=40),
    "dapod_buffer_policy_version": stuck(by=1),
    "dapod_buffer_groups_submitted_total kept": stuck(by=10),
    "dapod_buffer_groups_submitted_total all_wrong": stuck(by=10),
}
NO_ENGINE = {
    "dapod_rollout_engine_running": steady(0),
    "dapod_rollout_policy_version": steady(-1),
    "dapod_rollout_idle_seconds_total refused": steady(0),
    "dapod_buffer_groups_submitted_total kept": steady(0),
    "dapod_buffer_groups_submitted_total all_wrong": steady(0),
}
ONLY_WAITING = {
    "dapod_trainer_phase_seconds_total wait": growing(60),
    "dapod_trainer_phase_seconds_total update": steady(0),
    "dapod_trainer_step": steady(0),
    "dapod_trainer_entropy_nats": unknown(),
    "dapod_trainer_mismatch_kl_nats": unknown(),
    "dapod_buffer_policy_version": steady(0),
}

PEACE: dict[str, dict[str, str]] = {
    "a healthy run": healthy(),
    "a finished run, its trainer gone": leaves(FINISHED, "trainer"),
    "a finished run whose trainer pod is kept": FINISHED,
    "a finished run, scaled to zero": leaves(FINISHED, "trainer", "rollout", "reward", "buffer"),
    "a paused run": leaves(PAUSED, "trainer", "rollout"),
    "a paused run, scaled to zero": leaves(PAUSED, "trainer", "rollout", "reward", "buffer"),
    "a run that pauses by its rollouts alone": leaves(
        healthy(WAITS_FROM_HALF_AN_HOUR_ON), "rollout"
    ),
    "a run whose trainer has never had its GPUs": without(
        healthy({**NO_ENGINE, "dapod_buffer_policy_version": steady(-1)}), "trainer"
    ),
    "a run whose trainer lost its GPUs": leaves(
        healthy(
            {
                "dapod_buffer_policy_version": stuck(by=1),
                "dapod_rollout_policy_version": stuck(by=1),
                "dapod_rollout_idle_seconds_total refused": "0+20x29 600+60x150",
                "dapod_buffer_groups_submitted_total kept": stuck(by=10, at=40),
                "dapod_buffer_groups_submitted_total all_wrong": stuck(by=10, at=40),
            }
        ),
        "trainer",
    ),
    "a run whose rollouts have no GPUs": without(healthy(ONLY_WAITING), "rollout"),
    "a run whose engines are starting": healthy({**ONLY_WAITING, **NO_ENGINE}),
    "a pod that is added late": healthy(
        {"dapod_rollout_policy_version": changing(-1, 30, at=30)}
        | {"dapod_buffer_policy_version": "30x29 30x151"}
    ),
    "a pod that evaluates an old policy": healthy(
        {
            "dapod_rollout_policy_version": "0+1x19 20x161",
            "dapod_buffer_evaluation_policy_version": "-1x19 20x161",
        }
    ),
    "a Redis without a limit": healthy({"dapod_buffer_redis_memory_limit_bytes": steady(0)}),
    # Steps of 30 minutes: half an hour of silence is a third of what they may take.
    "a trainer whose steps are long": healthy(
        {
            "dapod_trainer_step": "0x29 1x29 2x29 3x91",
            "dapod_trainer_phase_seconds_total update": growing(55),
            "dapod_trainer_phase_seconds_total wait": growing(5),
            "dapod_trainer_last_progress_timestamp_seconds": "0+60x29 1800x29 3600x29 5400x91",
        }
    ),
}


@pytest.fixture
def found(tmp_path: Path) -> Callable[..., set[str]]:
    """What fires at any of the minutes."""
    return lambda series, *minutes: firing(series, minutes, tmp_path)


@needs_promtool
@pytest.mark.parametrize("trouble", TROUBLE)
def test_the_alert_fires_and_no_other(trouble: str, found: Callable[..., set[str]]) -> None:
    alert, series = TROUBLE[trouble]
    assert found(series, 75) == {alert}


@needs_promtool
@pytest.mark.parametrize("trouble", TROUBLE)
def test_its_summary_is_a_sentence(trouble: str, tmp_path: Path) -> None:
    alert, series = TROUBLE[trouble]
    said = summaries(alert, series, 75, tmp_path)
    assert said and all(text[0] != " " and text.endswith(".") for text in said)
    assert not any(word in text for text in said for word in ("<", "NaN", "Inf", "  ", "()"))


@needs_promtool
@pytest.mark.parametrize("peace", PEACE)
def test_no_alert_fires(peace: str, found: Callable[..., set[str]]) -> None:
    assert found(PEACE[peace], *range(4, 116, 5)) == set()


@needs_promtool
def test_a_finished_run_hides_no_trouble_of_another(found: Callable[..., set[str]]) -> None:
    series = named(leaves(FINISHED, "trainer"), "done") | named(
        TROUBLE["the trainer hangs"][1], "running"
    )
    assert found(series, 75) == {"TrainerStalled"}


def test_every_alert_has_a_trouble() -> None:
    assert {alert for alert, _ in TROUBLE.values()} == set(ALERTS)


@needs_promtool
def test_promtool_accepts_the_config_and_all_rules() -> None:
    promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    promtool("check", "rules", *RULES)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_it_is_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    notes = rule["annotations"]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    # By it dashboards and routes tell ours from others'.
    assert rule["labels"]["app"] == "dapod"
    assert notes["summary"].endswith(".") and notes["description"].endswith(".")
    assert notes["runbook"] == f"docs/operations.md#{alert.lower()}"
