"""The runner's hold on its reaper: starts it first, another when it dies, lets it go last.

In between there is a directory for temporary files, which goes with the reaper (`scratch`).
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from dapod.cli import scratch
from dapod.cli.processes import SERVICE, TOKEN

ROOT = Path(__file__).resolve().parents[2]
"""Where `dapod` and `services` are imported from."""
REDIS_URL = "DAPOD_REDIS_URL"
"""Holds a password; only the buffer and who starts it are given it."""


class Guard:
    """One live reaper for as long as the guard is open. `with Guard(token, lock) as guard: ...`"""

    def __init__(self, token: str, lock_descriptor: int | None = None) -> None:
        self._token = token
        self._inherited = () if lock_descriptor is None else (lock_descriptor,)
        self._reaper: subprocess.Popen[bytes] | None = None
        self._held = -1
        """The write end of the reaper's standard input."""

    def __enter__(self) -> "Guard":
        self._reaper = self._start()
        scratch.make(self._token)
        return self

    def check(self) -> bool:
        """False when the reaper had died; another one runs then."""
        assert self._reaper is not None
        if self._reaper.poll() is None:
            return True
        os.close(self._held)
        self._reaper = self._start()
        return False

    def __exit__(self, *_: object) -> None:
        """Everything is stopped by now; waits for the reaper to see that and release the lock."""
        assert self._reaper is not None
        os.close(self._held)
        self._reaper.wait(timeout=70)

    @property
    def pid(self) -> int:
        assert self._reaper is not None
        return self._reaper.pid

    def _start(self) -> subprocess.Popen[bytes]:
        # The token lies in the pipe before there is a reaper: a runner may be killed at any time.
        read, self._held = os.pipe()
        os.write(self._held, self._token.encode() + b"\n")
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "dapod.cli.reaper"],
                stdin=read,
                stdout=subprocess.DEVNULL,
                env=_environment(os.environ),
                start_new_session=True,
                pass_fds=self._inherited,
            )
        finally:
            os.close(read)


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    left_out = (TOKEN, SERVICE, REDIS_URL)
    kept = {name: value for name, value in inherited.items() if name not in left_out}
    return kept | {"PYTHONPATH": python_path(inherited)}


def python_path(inherited: Mapping[str, str]) -> str:
    """The import path of children: they must find this package whatever the working directory."""
    return os.pathsep.join(filter(None, [str(ROOT), inherited.get("PYTHONPATH", "")]))
