"""Writes components/monitoring/rules.yaml from deploy/prometheus/rules.

    python k8s/prometheus_rule.py

Prometheus reads its own format, the operator the same groups inside a PrometheusRule; kustomize
cannot wrap one into the other. A test compares the file with what this would write.
"""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy" / "prometheus" / "rules"
TARGET = ROOT / "k8s" / "components" / "monitoring" / "rules.yaml"
HEADER = "# Made by k8s/prometheus_rule.py from deploy/prometheus/rules, where the reasons stand.\n"


def text() -> str:
    """The PrometheusRule with all groups, recording rules first."""
    files = sorted(RULES.glob("*.yml"), key=lambda file: file.name != "recording.yml")
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "dapod"},
        "spec": {"groups": groups},
    }
    return HEADER + yaml.safe_dump(rule, sort_keys=False, width=100, allow_unicode=True)


if __name__ == "__main__":
    TARGET.write_text(text())
