"""The monitoring component carries deploy/'s rules and dashboards, as the operator wants them."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

from tests.k8s.manifests import K8S, ROOT, Manifest, build, named, of_kind, pods

SCRIPT = K8S / "prometheus_rule.py"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))


def test_the_prometheus_rule_is_what_the_rules_give() -> None:
    spec = importlib.util.spec_from_file_location("prometheus_rule", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TARGET.read_text() == script.text(), "run: python k8s/prometheus_rule.py"


def as_text(rule: Manifest) -> str:
    return json.dumps(rule, sort_keys=True)


def test_every_rule_of_the_compose_file_is_on_kubernetes_too() -> None:
    (rule,) = of_kind(build("cpu-demo", "monitoring"), "PrometheusRule")
    ours = [entry for group in rule["spec"]["groups"] for entry in group["rules"]]
    theirs = [
        entry
        for file in (ROOT / "deploy" / "prometheus" / "rules").glob("*.yml")
        for group in yaml.safe_load(file.read_text())["groups"]
        for entry in group["rules"]
    ]
    assert sorted(map(as_text, ours)) == sorted(map(as_text, theirs))
    assert len([entry for entry in ours if "alert" in entry]) >= 12


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda file: file.stem)
def test_every_dashboard_is_a_config_map_for_grafanas_sidecar(dashboard: Path) -> None:
    manifest = named(build("cpu-demo", "monitoring"), "ConfigMap", dashboard.stem)
    assert manifest["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(manifest["data"][dashboard.name]) == json.loads(dashboard.read_text())
    # kubectl apply keeps a copy in an annotation, which may be 256 KiB.
    assert len(json.dumps(manifest)) < 250_000


def test_the_pod_monitor_gives_the_jobs_that_the_rules_name() -> None:
    manifests = build("cpu-demo", "monitoring")
    (monitor,) = of_kind(manifests, "PodMonitor")
    (expression,) = monitor["spec"]["selector"]["matchExpressions"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (relabeling,) = [one for one in endpoint["relabelings"] if one.get("targetLabel") == "job"]
    jobs = {relabeling["replacement"].replace("$1", value) for value in expression["values"]}
    (rule,) = of_kind(manifests, "PrometheusRule")
    named_jobs = set(re.findall(r'job="(dapod-[a-z]+)"', json.dumps(rule).replace('\\"', '"')))
    assert named_jobs and named_jobs <= jobs


def test_pods_that_cannot_answer_yet_and_ranks_that_serve_nothing_are_no_targets() -> None:
    (monitor,) = of_kind(build("cpu-demo", "monitoring"), "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    label = "__meta_kubernetes_pod"
    names = [
        f"{label}_phase",
        f"{label}_label_app_kubernetes_io_component",
        f"{label}_ready",
        f"{label}_label_batch_kubernetes_io_job_completion_index",
    ]
    seen = {
        ("Running", "rollout", "true", ""): True,
        ("Running", "rollout", "false", ""): True,  # its engine starts, or it lost its policy
        ("Running", "buffer", "false", ""): True,
        ("Pending", "buffer", "false", ""): False,
        ("Running", "trainer", "true", "0"): True,
        ("Running", "trainer", "true", "1"): False,
        ("Running", "trainer", "true", "10"): False,
        ("Running", "trainer", "false", "0"): False,
        ("Pending", "trainer", "false", "0"): False,
    }
    for pod, kept in seen.items():
        labels = dict(zip(names, pod, strict=True))
        dropped = [
            one
            for one in endpoint["relabelings"]
            if one.get("action") == "drop"
            and re.fullmatch(one["regex"], ";".join(labels[name] for name in one["sourceLabels"]))
        ]
        assert (not dropped) == kept, pod


def test_a_trainer_has_no_readiness_of_its_own_that_could_hide_it() -> None:
    for overlay in ("cpu-demo", "single-node-gpu", "multi-node"):
        (pod,) = [pod for pod in pods(build(overlay)) if pod.component == "trainer"]
        trainer = pod.containers[0]
        assert "startupProbe" in trainer and "readinessProbe" not in trainer, overlay
