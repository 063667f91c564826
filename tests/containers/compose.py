"""docker-compose.yml as compose reads it: anchors and merges resolved, mounts split."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import yaml

from tests.containers.dockerfile import ROOT

OURS = ("model", "buffer", "reward", "rollout", "trainer", "rollout-gpu", "trainer-gpu")
"""Services of the file that run one of our images."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """`source:target[:ro]`; a source is a named volume or a path that starts with a dot."""

    source: str
    target: str
    read_only: bool


@functools.cache
def project() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


def services() -> dict[str, dict[str, Any]]:
    return dict(project()["services"])


def mounts(service: dict[str, Any]) -> list[Mount]:
    found = []
    for entry in service.get("volumes", []):
        source, target, *options = entry.split(":")
        found.append(Mount(source=source, target=target, read_only=options == ["ro"]))
    return found
