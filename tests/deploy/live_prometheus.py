"""A real Prometheus with the shipped configuration, in front of services on loopback.

Two things differ from what is shipped: targets are given by address, for there is no DNS of compose
here, and it scrapes every two seconds, for runs in tests are short.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from dapod.cli.ports import free_ports
from tests.deploy.promtool import DEPLOY

INTERVAL = "2s"


def has_prometheus() -> bool:
    return shutil.which("prometheus") is not None


needs_prometheus = pytest.mark.skipif(
    not has_prometheus(),
    reason="prometheus is not installed (Debian: apt-get install --no-install-recommends "
    "prometheus)",
)


class LivePrometheus:
    """Example: `with LivePrometheus.start(folder, {"buffer": ["127.0.0.1:15000"]}) as it: ...`."""

    def __init__(self, port: int, log: Path) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._log = log
        self.began = time.time()
        self._last: float | None = None

    @classmethod
    @contextmanager
    def start(cls, folder: Path, targets: Mapping[str, Sequence[str]]) -> Iterator[LivePrometheus]:
        (port,) = free_ports(1)
        folder.mkdir(parents=True)
        shutil.copytree(DEPLOY / "prometheus" / "rules", folder / "rules")
        (folder / "prometheus.yml").write_text(yaml.safe_dump(_config(targets)))
        command = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        prometheus = cls(port, folder / "log")
        try:
            prometheus.wait(prometheus._is_ready, "Prometheus is ready", 30)
            yield prometheus
        finally:
            process.terminate()
            process.wait(20)

    def ask_no_later_than_now(self) -> None:
        """From here on every question is about the time until this moment."""
        self._last = time.time()

    @property
    def _now(self) -> str:
        return str(self._last or time.time())

    def value(self, query: str) -> float | None:
        """One number now; None for nothing."""
        found = self._ask("query", query=query, time=self._now)["result"]
        return float(found[0]["value"][1]) if found else None

    def has_data(self, query: str) -> bool:
        """Whether it gave a number at any moment since the start."""
        found = self._ask(
            "query_range", query=query, start=str(self.began), end=self._now, step="2"
        )
        return any(value != "NaN" for series in found["result"] for _, value in series["values"])

    def names(self) -> set[str]:
        """Of every series it has stored."""
        return set(self._ask("label/__name__/values"))

    def wait(self, holds: Callable[[], object], description: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            said = self._log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"not within {seconds} s: {description}\n{said}"
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _ask(self, path: str, **parameters: str) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]


def _config(targets: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {
        "scrape_interval": INTERVAL,
        "scrape_timeout": INTERVAL,
        "evaluation_interval": INTERVAL,
    }
    for job in config["scrape_configs"]:
        (entry,) = job.pop("dns_sd_configs")
        found = [target for name in entry["names"] for target in targets[name]]
        job["static_configs"] = [{"targets": found}]
    return dict(config)
