"""One `dapod run` as a person starts it, watched from outside: output, files, pages, processes.

    with LiveRun.start(tmp_path / "run", steps=4) as run:
        run.wait(lambda: run.rows(), "the first step is trained")
        run.kill("buffer")
        end = run.wait_until_ended()

It knows the command line and what a run leaves behind, nothing of a service's inside. Whatever
happens, nothing of the run outlives the `with` block.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.run_processes import RunProcesses, kill

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.toml"
MODEL = ROOT / "models" / "smollm2-135m-instruct"

STEP_SECONDS = 240.0
"""Most seconds from one step to the next, the engine's start included: the machine may be busy."""
_DAPOD = Path(sys.executable).with_name("dapod")


@dataclass(frozen=True, kw_only=True)
class End:
    """How the command ended."""

    status: int
    """Exit status; negative for a signal, as `subprocess` has it."""
    output: str
    """What it wrote to stdout."""
    errors: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """One answer over HTTP."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class LiveRun:
    """A run directory and the `dapod run` that works in it."""

    def __init__(self, run_dir: Path, arguments: Sequence[str]) -> None:
        self.run_dir = run_dir
        self._output = run_dir.with_name(f"{run_dir.name}-{uuid.uuid4().hex[:6]}.out")
        self._processes = RunProcesses()
        command = [*_command(), "run", str(QUICKSTART), "--run-dir", str(run_dir), *arguments]
        with self._output.open("wb") as out, self._errors.open("wb") as err:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env={**os.environ, **self._processes.mark},
                start_new_session=True,
            )

    @classmethod
    @contextmanager
    def start(
        cls,
        run_dir: Path,
        *,
        steps: int,
        resume: bool = False,
        rollouts: int = 1,
        settings: Mapping[str, object] | None = None,
    ) -> Iterator["LiveRun"]:
        """Starts the quickstart with `settings` changed; ends everything of it with the block."""
        arguments = ["--steps", str(steps), "--rollouts", str(rollouts)]
        for key, value in (settings or {}).items():
            arguments += ["--set", f"{key}={value}"]
        run = cls(run_dir, [*arguments, *(["--resume"] if resume else [])])
        try:
            yield run
        finally:
            run.end_everything()

    # What it says and leaves.

    def rows(self) -> list[dict[str, Any]]:
        """steps.jsonl, whole lines only."""
        return read_rows(self.run_dir / "steps.jsonl")

    def trained(self) -> int:
        """Steps that have a row."""
        return len(self.rows())

    def checkpointed(self) -> int:
        """Steps that the newest checkpoint holds; 0 without one."""
        found = (self.run_dir / "checkpoints").glob("step-*/checkpoint.json")
        return max((json.loads(file.read_text())["step"] for file in found), default=0)

    def identity(self) -> dict[str, Any]:
        """run.json."""
        return dict(json.loads((self.run_dir / "run.json").read_text()))

    def log(self, service: str) -> str:
        return (self.run_dir / "logs" / f"{service}.log").read_text(errors="replace")

    def page(self, service: str, path: str) -> Page | None:
        """What the service answers over HTTP now; None when it does not."""
        url = self.services().get(service, {}).get("ops")
        if url is None:
            return None
        try:
            with urllib.request.urlopen(f"{url}{path}", timeout=5) as answer:
                return Page(status=answer.status, text=answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Page(status=error.code, text=error.read().decode())
        except OSError:
            return None

    def activity(self, service: str) -> str:
        """What the service says it does or waits for; empty when it does not answer."""
        page = self.page(service, "/readyz")
        return "" if page is None else str(page.json["activity"])

    # Its processes.

    def services(self) -> dict[str, dict[str, Any]]:
        """services.json: process id and addresses by service; empty before and after."""
        try:
            return dict(json.loads((self.run_dir / "services.json").read_text()))
        except FileNotFoundError:
            return {}

    def kill(self, service: str) -> int:
        """SIGKILL to the one process the runner started for `service`; returns its id."""
        pid = int(self.services()[service]["pid"])
        self._note_processes()
        kill([pid])
        return pid

    def kill_with_children(self, service: str) -> None:
        """SIGKILL to all processes of `service`."""
        self._note_processes()
        kill(self._processes.of_service(service))

    def is_back(self, service: str, killed: int) -> bool:
        """Whether another process than `killed` runs and says it is ready (Valkey: runs)."""
        entry = self.services().get(service, {})
        if entry.get("pid") in (None, killed):
            return False
        if "ops" not in entry:
            return psutil.pid_exists(int(entry["pid"]))
        page = self.page(service, "/readyz")
        return page is not None and page.status == 200

    def kill_runner(self) -> None:
        """SIGKILL to `dapod run` itself."""
        self._note_processes()
        self._process.kill()
        self._process.wait(timeout=10)

    def press_ctrl_c(self) -> None:
        """SIGINT to the command's process group, as a terminal sends it."""
        self._note_processes()
        os.killpg(self._process.pid, signal.SIGINT)

    def left_behind(self) -> list[str]:
        """Processes of this run that are alive, described."""
        return self._processes.alive()

    # Waiting.

    def wait(
        self, holds: Callable[[], object], description: str, seconds: float = STEP_SECONDS
    ) -> None:
        """Polls while the run goes on; says what was waited for when it ends or time is up."""
        deadline = time.monotonic() + seconds
        while not holds():
            if self._process.poll() is not None and not holds():
                raise AssertionError(f"the run ended before {description}\n{self.story()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:.0f} s: {description}\n{self.story()}")
            time.sleep(0.1)

    def wait_for_steps(self, count: int) -> None:
        """Until `count` steps are trained."""
        self.wait(lambda: self.trained() >= count, f"{count} steps are trained")
        self._note_processes()

    def wait_until_ended(self, seconds: float = 300.0) -> End:
        """Until the command itself ends."""
        deadline = time.monotonic() + seconds
        while (status := self._process.poll()) is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"no end within {seconds:.0f} s\n{self.story()}")
            self._note_processes()
            time.sleep(0.5)
        return End(status=status, output=self._output.read_text(), errors=self._errors.read_text())

    def wait_until_nothing_is_left(self, seconds: float) -> None:
        """After the runner is gone."""
        deadline = time.monotonic() + seconds
        while left := self.left_behind():
            assert time.monotonic() < deadline, f"alive after {seconds:.0f} s: {left}"
            time.sleep(0.1)

    def story(self) -> str:
        """The last of what the run said and logged, for a failing test."""
        parts = [self._output, self._errors, *sorted((self.run_dir / "logs").glob("*.log"))]
        return "\n".join(f"--- {file.name}\n{_tail(file)}" for file in parts if file.exists())

    def end_everything(self) -> None:
        """Kills what is left."""
        self._process.kill()
        self._process.wait(timeout=10)
        self._processes.end_all()

    @property
    def _errors(self) -> Path:
        return self._output.with_suffix(".err")

    def _note_processes(self) -> None:
        self._processes.note(self._process.pid)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """A file of JSON lines, whole lines only; none when it is not there."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _command() -> list[str]:
    return [str(_DAPOD)] if _DAPOD.exists() else [sys.executable, "-m", "dapod.cli"]


def _tail(file: Path, lines: int = 12) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
