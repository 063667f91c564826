"""One service's process: started, watched, and killed with everything it started itself."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from dapod.cli import scratch
from dapod.cli.fleet import ServiceSpec
from dapod.cli.processes import SERVICE, TOKEN, kill_all

SENTENCE = "dapod: "
"""Begins the line in which a service says what the user must change."""
_TAIL_BYTES = 1 << 16
_REASON_CHARACTERS = 160
_WARNING = re.compile(r"\w*Warning: |^\s+warnings\.warn\(")
"""What Python's resource tracker says after the traceback, and the source line it quotes."""


class Child:
    """A `ServiceSpec` that runs. Its output is appended to `log`."""

    def __init__(self, spec: ServiceSpec, *, token: str, log: Path) -> None:
        self.spec = spec
        self.log = log
        self._identity = {TOKEN: token, SERVICE: spec.name}
        temporary = {scratch.VARIABLE: str(scratch.directory_of(token))}
        self._began_at = log.stat().st_size if log.exists() else 0
        self.started = time.monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                spec.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**spec.environment, **temporary, **self._identity},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def status(self) -> int | None:
        """None while it runs, else the exit status, negative for a signal."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """SIGTERM to the process itself; what it started is its own business until the deadline."""
        if self.status() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill_leftovers(self) -> None:
        """Kills whatever of its tree is left, itself included."""
        kill_all(self._identity)
        self.reap()

    def reap(self) -> None:
        """Takes the exit status of a process that was killed."""
        self._process.wait(timeout=10)

    def how_it_ended(self) -> str:
        """In words, with the last it said; one that was killed did not say why."""
        status = self.status()
        assert status is not None
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        said = [line for line in self.last_lines(20) if not _WARNING.search(line)]
        last = said[-1].strip() if said else ""
        if len(last) > _REASON_CHARACTERS:
            last = last[:_REASON_CHARACTERS].rpartition(" ")[0] + " …"
        return f"exit status {status}" + (f": {last}" if last else "")

    def last_lines(self, count: int) -> list[str]:
        """The end of what this process (not one before it) wrote."""
        with self.log.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(self._began_at, end - _TAIL_BYTES))
            text = stream.read().decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()][-count:]

    def complaint(self) -> str | None:
        """What the user must change, when it ended for that (exit status 2 and a sentence)."""
        if self.status() != 2:
            return None
        said = [line for line in self.last_lines(50) if line.startswith(SENTENCE)]
        return said[-1].removeprefix(SENTENCE) if said else None
