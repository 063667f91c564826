"""A dashboard or a rule queries only what exists, and what we export is looked at somewhere."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.exported import OTHERS, VLLM, families, known_names, unused
from tests.deploy.promtool import DEPLOY, ROOT
from tests.deploy.queries import names, panels, rules

RECORDED = {rule["record"] for rule in rules() if "record" in rule}
USED = {name for rule in rules() for name in names(rule["expr"])} | {
    name for panel in panels() for query in panel.queries for name in names(query)
}


def test_names_are_found_in_queries() -> None:
    query = 'sum by (le) (rate(dapod_a_bucket{x="dapod_b"}[5m])) / dapod:c:d unless up == 0'
    assert names(query) == {"dapod_a_bucket", "dapod:c:d", "up"}


def test_every_metric_named_is_exported() -> None:
    assert USED - RECORDED - known_names() == set()


def test_the_autoscalers_ask_for_what_is_exported() -> None:
    components = ROOT / "k8s" / "components"
    for file in ("autoscaling-keda/scaledobject.yaml", "autoscaling-hpa/prometheus-adapter.yaml"):
        told = yaml.safe_load((components / file).read_text())
        asked = {name for query in _queries_in(told) for name in names(query)}
        assert asked and asked <= known_names(), file


def _queries_in(told: object) -> Iterator[str]:
    if isinstance(told, dict):
        for key, value in told.items():
            if key in ("query", "metricsQuery", "seriesQuery"):
                yield value
            else:
                yield from _queries_in(value)
    elif isinstance(told, list):
        for one in told:
            yield from _queries_in(one)


COVERED = {
    "entropy": ["trainer_entropy_nats"],
    "clip fractions": ["trainer_clip_fraction_ratio"],
    "mismatch KL": ["trainer_mismatch_kl_nats"],
    "reward": ["trainer_reward_mean"],
    "outcomes": ["reward_verifications"],
    "response length and truncation": [
        "trainer_response_tokens_mean",
        "trainer_truncated_ratio",
        "rollout_response_tokens",
        "rollout_truncated",
    ],
    "dynamic sampling": ["buffer_groups_submitted", "buffer_groups_stale"],
    "staleness": ["trainer_staleness_mean", "buffer_batch_staleness_versions"],
    "time per phase of the trainer": ["trainer_phase_seconds"],
    "idle time of rollouts": ["rollout_idle_seconds"],
    "tokens generated and trained": ["rollout_tokens_generated", "trainer_tokens_trained"],
    "policy version per service": [
        "trainer_policy_version",
        "buffer_policy_version",
        "rollout_policy_version",
    ],
    "publish and load": ["trainer_publish_seconds", "rollout_load_seconds"],
    "load failures": ["rollout_load_failures"],
    "buffer by state and bytes": ["buffer_groups", "buffer_payload_bytes"],
    "capacity": ["buffer_capacity_groups"],
    "leases expired": ["buffer_leases_expired"],
    "duplicates and lost groups": ["buffer_groups_submitted", "buffer_conservation_error_groups"],
    "resumes": ["buffer_resumes"],
    "verifiers": ["reward_verification_seconds", "reward_kills", "reward_queued_verifications"],
    "last progress": [
        f"{service}_last_progress_timestamp_seconds"
        for service in ("buffer", "reward", "rollout", "trainer")
    ],
    "Redis": [
        "buffer_redis_up",
        "buffer_redis_memory_bytes",
        "buffer_redis_memory_limit_bytes",
        "buffer_redis_append_only_ok",
    ],
}
"""What must be seen of a run, and by which metrics."""


@pytest.mark.parametrize("what", COVERED)
def test_what_must_be_seen_has_a_metric(what: str) -> None:
    assert {f"dapod_{name}" for name in COVERED[what]} <= {family.name for family in families()}


def test_dynamic_sampling_counts_every_end_of_a_group() -> None:
    (family,) = [f for f in families() if f.name == "dapod_buffer_groups_submitted"]
    seen = {sample.labels["disposition"] for sample in family.samples}
    assert seen == {"kept", "all_correct", "all_wrong", "failed", "duplicate", "expired"}


def test_every_recorded_series_is_used() -> None:
    assert RECORDED <= USED


def test_every_metric_we_export_is_used() -> None:
    assert unused(USED) == set()


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_a_metric_is_named_by_the_rules_and_has_a_sentence(family) -> None:
    assert re.fullmatch(r"dapod_(buffer|reward|rollout|trainer)_[a-z_]+", family.name)
    assert family.documentation.endswith(".")
    assert not family.name.endswith(("_total", "_count"))


def test_vllms_metrics_are_those_of_the_installed_one() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vllm is not installed")
    source = (Path(spec.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    assert set(re.findall(r'name="(vllm:\w+)"', source)) == VLLM


def test_vllms_and_others_are_recorded_only_where_they_are_needed() -> None:
    assert OTHERS <= USED


def test_every_alert_has_its_section_in_the_runbook() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.M | re.S))
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    assert set(alerts) == set(sections)
    for alert, rule in alerts.items():
        for part in ("**Symptom.**", "**Metric.**", "**Action.**"):
            assert part in sections[alert], (alert, part)
        assert f"({rule['labels']['severity']})" in sections[alert], alert


def test_the_runbook_names_only_metrics_that_exist() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"`(dapod[_:][\w:]+)", text))
    assert named <= known_names() | RECORDED


def test_compose_services_are_found_by_their_names() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    found = {
        job["job_name"]: (entry["names"], entry["port"])
        for job in config["scrape_configs"]
        for entry in job["dns_sd_configs"]
    }
    services = ("buffer", "reward", "rollout", "trainer")
    assert found == {f"dapod-{name}": ([name], 8080) for name in services}
