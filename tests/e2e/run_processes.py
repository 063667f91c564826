"""Every process of a run, found in ways the run itself does not control.

By a mark the test puts into the command's environment, by the run's own token, and by having been
seen among the command's descendants: one that loses its environment or its parent is still found.
"""

import os
import signal
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress

import psutil

from dapod.cli.processes import SERVICE, TOKEN, carrying


class RunProcesses:
    """Those of one command that is started with `mark` in its environment."""

    def __init__(self) -> None:
        self.mark = {"DAPOD_TEST_MARK": uuid.uuid4().hex}
        self._seen: set[psutil.Process] = set()
        self._tokens: set[str] = set()

    def note(self, command: int) -> None:
        """Remembers who descends from process `command` now, to look for them later."""
        with suppress(psutil.NoSuchProcess):
            now = psutil.Process(command).children(recursive=True)
            self._seen.update(now)
            self._tokens.update(token for process in now if (token := _token(process)))

    def of_service(self, service: str) -> list[int]:
        """Ids of all that belong to `service`."""
        return carrying({**self.mark, SERVICE: service})

    def alive(self) -> list[str]:
        """All of the run that live, described."""
        found = {process for process in self._seen if _lives(process)}
        for variables in (self.mark, *({TOKEN: token} for token in self._tokens)):
            found |= set(filter(None, map(_process, carrying(variables))))
        return sorted(filter(None, map(_describe, found)))

    def end_all(self) -> None:
        """Kills all that carry the mark."""
        deadline = time.monotonic() + 20
        while (left := carrying(self.mark)) and time.monotonic() < deadline:
            kill(left)
            time.sleep(0.1)


def kill(pids: Iterable[int]) -> None:
    """SIGKILL; one that is gone already is as good."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _lives(process: psutil.Process) -> bool:
    """Not gone, not a zombie, and not another process under the same id."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _describe(process: psutil.Process) -> str:
    """Empty for a process that has just gone."""
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:120]}"
    except psutil.NoSuchProcess:
        return ""


def _token(process: psutil.Process) -> str:
    try:
        return process.environ().get(TOKEN, "")
    except psutil.Error:
        return ""
