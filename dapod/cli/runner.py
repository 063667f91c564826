"""One run from the first process to the last: the loop of the command `dapod run`.

    reaper ─► supervisor: valkey, then all others ─► poll, show, tail steps.jsonl ─► stop everything

The services, the question whether the run has finished and the screen are given to it: it knows
none of them.
"""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dapod.cli.evaluations import EvaluationLog
from dapod.cli.fleet import ServiceSpec
from dapod.cli.guard import Guard
from dapod.cli.progress import Progress
from dapod.cli.readiness import Readiness, ReadinessPoll
from dapod.cli.service_progress import view_of
from dapod.cli.signals import Signals
from dapod.cli.status import RunStatus
from dapod.cli.steps import StepLog
from dapod.cli.supervisor import Supervisor

_TICK_SECONDS = 0.2
_FIRST_SECONDS = 300.0
"""How long the first service may take; Valkey reads its append-only file."""
_STATUS_SECONDS = 60.0
"""How long the buffer may take to say how the run ended; it may just be restarting."""


@dataclass(frozen=True, kw_only=True)
class RunnerParts:
    """What one run is made of."""

    specs: Sequence[ServiceSpec]
    run_dir: Path
    progress: Progress
    steps: StepLog
    evaluations: EvaluationLog
    ask_status: Callable[[], RunStatus | None]
    """None when the buffer does not answer now."""
    wait_first: Callable[[], bool] = lambda: True
    """Whether the service that is started first, alone, answers."""
    ends_the_run: str = "trainer"
    """The service whose exit status 0 ends the run."""


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a run ended: by itself, or by a signal."""

    ended: Literal["finished", "stopped"]
    status: RunStatus | None
    """None when it was stopped, or the buffer did not say."""
    signal_number: int = 0
    seconds: float
    restarts: dict[str, int]


class Runner:
    """Runs `parts` to the end. Whatever happens, nothing it started outlives `run()`."""

    def __init__(self, parts: RunnerParts) -> None:
        self._parts = parts
        self._token = uuid.uuid4().hex
        self._woken = threading.Event()
        self._signals = Signals(self._woken)
        self._supervisor = Supervisor(
            parts.specs,
            may_end=parts.ends_the_run,
            token=self._token,
            run_dir=parts.run_dir,
            say=parts.progress.say,
        )

    def run(self, lock_descriptor: int | None = None) -> RunEnd:
        """Raises `ConfigError` for what the user must change and `TooManyRestarts`."""
        began = time.monotonic()
        with self._signals.caught(), Guard(self._token, lock_descriptor) as guard:
            try:
                status = self._watch(guard)
            finally:
                self._stop()
        return RunEnd(
            ended="stopped" if self._signals.came else "finished",
            status=status,
            signal_number=self._signals.numbers[0] if self._signals.came else 0,
            seconds=time.monotonic() - began,
            restarts=self._supervisor.restarts,
        )

    def _watch(self, guard: Guard) -> RunStatus | None:
        """Until the run has finished or a signal came."""
        first, *others = [spec.name for spec in self._parts.specs]
        self._supervisor.start([first])
        self._wait_for(first)
        self._supervisor.start(others)
        ops_ports = {spec.name: spec.ops_port for spec in self._parts.specs if spec.ops_port}
        with ReadinessPoll(ops_ports) as readiness:
            while not self._signals.came:
                if not guard.check():
                    self._parts.progress.say(
                        "the reaper had died; another one watches this run now"
                    )
                self._supervisor.poll()
                self._show(readiness.latest())
                if self._supervisor.ended_well:
                    ended, status = self._end()
                    if ended:
                        return status
                self._woken.wait(_TICK_SECONDS)
        return None

    def _wait_for(self, first: str) -> None:
        deadline = time.monotonic() + _FIRST_SECONDS
        while not self._signals.came and not self._parts.wait_first():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{first} does not answer after {_FIRST_SECONDS:.0f} s")
            self._supervisor.poll()
            self._woken.wait(_TICK_SECONDS)

    def _show(self, answers: dict[str, Readiness]) -> None:
        parts = self._parts
        parts.progress.evaluations(parts.evaluations.news())
        parts.progress.steps(parts.steps.news(), parts.steps.rows)
        parts.progress.services(
            [view_of(spec, self._supervisor, answers) for spec in parts.specs], parts.steps.rows
        )

    def _end(self) -> tuple[bool, RunStatus | None]:
        """The trainer is done: whether the run is, and what the buffer counted."""
        deadline = time.monotonic() + _STATUS_SECONDS
        while time.monotonic() < deadline and not self._signals.came:
            status = self._parts.ask_status()
            if status is not None and status.finished:
                return True, status
            if status is not None:
                self._supervisor.ended_too_early(
                    f"the {self._parts.ends_the_run} stopped too early"
                )
                return False, None
            # The buffer may be the one that is down.
            self._supervisor.poll()
            self._woken.wait(_TICK_SECONDS)
        return True, None

    def _stop(self) -> None:
        try:
            self._parts.progress.say("stopping")
        finally:  # saying it fails when nobody reads the output any more
            gone = self._supervisor.stop(hurry=lambda: self._signals.hurry)
        if not gone:
            self._parts.progress.say("some processes of this run could not be killed")
