"""All queries we ship, and the metric names in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.deploy.promtool import DEPLOY, RULES

DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
VARIABLES = {"$namespace": ".*", "$instance": ".*", "$__rate_interval": "1m"}
"""What Grafana puts in when nothing is chosen, with a scrape every 10 to 15 s."""

_NAME = re.compile(
    r"\b(?:dapod_\w+|dapod:[\w:]+|vllm:\w+|process_\w+|ALERTS|up)\b(?=[{\[ )]|$)", re.M
)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel that shows something."""

    dashboard: str
    spec: dict[str, Any]

    @property
    def title(self) -> str:
        return str(self.spec["title"])

    @property
    def queries(self) -> list[str]:
        """As Prometheus gets them."""
        return [_filled(target["expr"]) for target in self.spec["targets"]]


def panels() -> list[Panel]:
    return [
        Panel(dashboard=file.stem, spec=spec)
        for file in DASHBOARDS
        for spec in json.loads(file.read_text())["panels"]
        if spec["type"] != "row"
    ]


def annotations() -> list[str]:
    """What marks the time axis of every panel, a query for each dashboard's mark."""
    return [
        _filled(mark["expr"])
        for file in DASHBOARDS
        for mark in json.loads(file.read_text())["annotations"]["list"]
    ]


def rules() -> Iterator[dict[str, Any]]:
    for file in RULES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from group["rules"]


def names(query: str) -> set[str]:
    """The metrics a query reads; labels' values are none."""
    return set(_NAME.findall(re.sub(r'"[^"]*"', '""', query)))


def _filled(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query
