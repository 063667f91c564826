"""docker-compose.yml as a person runs it, under podman-compose, watched from outside.

    with ComposedRun.start(folder, steps=60) as run:
        run.wait(lambda: run.trained() >= 3, "three steps are trained", 900)
        run.scale(3)

The file is taken as it is. What differs is around it: the images of Valkey and Prometheus have
stand-ins, the volume of the model is this machine's, and the config has more steps.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tests.podman.podman import ROOT, STAND_INS, podman, program, settings

MODELS = ROOT / "models"
OPS = "http://127.0.0.1:8080"
_ASK = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
"""


_SIGNAL_AT_WORK = """
import os, pathlib, re, sys, time, urllib.request

ops, number, init = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
children = pathlib.Path("/proc/1/task/1/children").read_text().split()
deadline = time.monotonic() + 300
while time.monotonic() < deadline:
    text = urllib.request.urlopen(ops + "/metrics", timeout=5).read().decode()
    if float(re.search(r"^dapod_rollout_groups_in_flight (\\S+)", text, re.M)[1]) > 0:
        os.kill(1 if init else int(children[0]), number)
        break
    time.sleep(0.02)
"""


class ComposedRun:
    """A project of its own, with its own containers, networks and volumes."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.name = f"dapod{uuid.uuid4().hex[:6]}"
        self._folder = folder
        for part in ("configs", "deploy"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy(ROOT / "docker-compose.yml", folder)
        config = folder / "configs" / "quickstart.toml"
        config.write_text(
            re.sub(r"^steps = \d+", f"steps = {steps}", config.read_text(), flags=re.M)
        )
        (folder / "here.yml").write_text(yaml.safe_dump(_HERE))

    @classmethod
    @contextmanager
    def start(cls, folder: Path, *, steps: int) -> Iterator[ComposedRun]:
        """Everything of it is gone with the block."""
        run = cls(folder, steps)
        try:
            run.compose("up", "--detach", "--no-build")
            yield run
        finally:
            run.compose("down", "--volumes", "--timeout", "5", check=False)

    def compose(self, *words: str, check: bool = True) -> None:
        compose = program("podman-compose")
        assert compose is not None
        command = [compose, "--project-name", self.name, "--file", "docker-compose.yml"]
        done = subprocess.run(
            [*command, "--file", "here.yml", *words],
            cwd=self._folder,
            env=settings(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr[-3000:]

    def scale(self, rollouts: int) -> None:
        """Starts what is missing; surplus containers, the youngest first, are told to stop."""
        for name in self.containers("rollout", "--all")[rollouts:]:
            podman("rm", "--force", "--time=60", name, seconds=120)
        self.compose(
            "up", "--detach", "--no-build", "--no-recreate", "--scale", f"rollout={rollouts}"
        )

    def signal_at_work(self, container: str, number: int, *, init: bool) -> None:
        """A signal to its init or to its service, in the moment when it has leases."""
        self.execute(container, _SIGNAL_AT_WORK, OPS, str(number), str(init), check=False)

    def execute(self, container: str, code: str, *arguments: str, check: bool = True) -> str:
        """What a Python program prints inside it."""
        return podman("exec", container, "python", "-c", code, *arguments, seconds=120, check=check)

    # What it says.

    def containers(self, service: str, *options: str) -> list[str]:
        """Names of those that run, or with --all of those that ended too."""
        label = f"--filter=label=com.docker.compose.service={service}"
        project = f"--filter=label=com.docker.compose.project={self.name}"
        listed = podman("ps", *options, label, project, "--format={{.Names}}", seconds=120)
        return sorted(listed.split())

    def page(self, container: str, path: str) -> str:
        """What the service in it answers over HTTP; empty when it does not."""
        return self.execute(container, _ASK, OPS + path, check=False)

    def value(self, container: str, metric: str) -> float | None:
        """One of its metrics, summed over its labels; None when it does not say."""
        found = re.findall(
            rf"^{metric}(?:\{{.*\}})? (\S+)$", self.page(container, "/metrics"), re.M
        )
        return sum(map(float, found)) if found else None

    def buffer(self, metric: str) -> float:
        (container,) = self.containers("buffer")
        value = self.value(container, f"dapod_buffer_{metric}")
        assert value is not None, self.story()
        return value

    def rows(self) -> list[dict[str, Any]]:
        """steps.jsonl on the trainer's volume, whole lines only."""
        place = podman("volume", "inspect", "--format={{.Mountpoint}}", f"{self.name}_results")
        file = Path(place.strip()) / "steps.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def trained(self) -> int:
        return len(self.rows())

    def wait(self, holds: Callable[[], object], description: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, (
                f"not within {seconds} s: {description}\n{self.story()}"
            )
            time.sleep(1)

    def first_time(self, container: str, words: str) -> datetime:
        """When it first logged a line with these words."""
        line = next(line for line in _log(container).splitlines() if words in line)
        return datetime.fromisoformat(" ".join(line.split()[:2]))

    def story(self) -> str:
        """The last lines of every container."""
        project = f"--filter=label=com.docker.compose.project={self.name}"
        names = podman("ps", "--all", project, "--format={{.Names}}", seconds=120).split()
        parts = [f"--- {name}\n{_log(name, '--tail=12')}" for name in names]
        return podman("ps", "--all", project, seconds=120) + "\n".join(parts)


def _log(container: str, *options: str) -> str:
    done = subprocess.run(
        ["podman", "logs", *options, container],
        env=settings(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


_HERE = {
    "services": {"valkey": {"image": STAND_INS}, "prometheus": {"image": STAND_INS}},
    "volumes": {
        "models": {
            "driver": "local",
            "driver_opts": {"type": "none", "o": "bind", "device": str(MODELS.resolve())},
        }
    },
}
