"""The runner's hold on its reaper: starts it first, another when it dies, lets it go last."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from dapod.cli.processes import SERVICE, TOKEN

ROOT = Path(__file__).resolve().parents[2]
"""Where `dapod` and `services` are imported from."""


class Guard:
    """One live reaper for as long as the guard is open. `with Guard(token, lock) as guard: ...`"""

    def __init__(self, token: str, lock_descriptor: int | None = None) -> None:
        self._token = token
        self._inherited = () if lock_descriptor is None else (lock_descriptor,)
        self._reaper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Guard":
        self._reaper = self._start()
        return self

    def check(self) -> bool:
        """False when the reaper had died; another one runs then."""
        assert self._reaper is not None
        if self._reaper.poll() is None:
            return True
        _let_go(self._reaper)
        self._reaper = self._start()
        return False

    def __exit__(self, *_: object) -> None:
        """Everything is stopped by now; waits for the reaper to see that and release the lock."""
        assert self._reaper is not None
        _let_go(self._reaper)
        self._reaper.wait(timeout=70)

    @property
    def pid(self) -> int:
        assert self._reaper is not None
        return self._reaper.pid

    def _start(self) -> subprocess.Popen[bytes]:
        reaper = subprocess.Popen(
            [sys.executable, "-m", "dapod.cli.reaper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=_environment(os.environ),
            start_new_session=True,
            pass_fds=self._inherited,
        )
        assert reaper.stdin is not None
        reaper.stdin.write(self._token.encode() + b"\n")
        reaper.stdin.flush()
        return reaper


def _let_go(reaper: subprocess.Popen[bytes]) -> None:
    assert reaper.stdin is not None
    reaper.stdin.close()


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in inherited.items() if name not in (TOKEN, SERVICE)}
    return kept | {"PYTHONPATH": python_path(inherited)}


def python_path(inherited: Mapping[str, str]) -> str:
    """The import path of children: they must find this package whatever the working directory."""
    return os.pathsep.join(filter(None, [str(ROOT), inherited.get("PYTHONPATH", "")]))
