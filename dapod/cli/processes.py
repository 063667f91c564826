"""Processes found by their environment: how a run finds everything it started.

torchrun and vLLM put their processes into sessions of their own, so neither process groups nor the
tree of parents leads to all of them, least of all once the runner is dead. What every one of them
inherits is its environment. Standard library only: the reaper must start quickly.
"""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

TOKEN = "DAPOD_RUN_TOKEN"
"""Set in everything a run starts; new at every start of the runner."""
SERVICE = "DAPOD_SERVICE"
"""The service a process belongs to."""

PROC = Path("/proc")
_PAUSE_SECONDS = 0.1


def carrying(variables: Mapping[str, str]) -> list[int]:
    """The ids of all live processes whose environment holds every one of `variables`."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    return [pid for pid in _pids() if wanted <= _environment(pid)]


def kill_all(variables: Mapping[str, str], *, deadline_seconds: float = 10.0) -> bool:
    """SIGKILLs those processes until none is left; False when some outlived the deadline.

    Two empty scans in a row: one can miss a child that is just being forked.
    """
    deadline = time.monotonic() + deadline_seconds
    empty_scans = 0
    while time.monotonic() < deadline:
        found = carrying(variables)
        empty_scans = 0 if found else empty_scans + 1
        if empty_scans == 2:
            return True
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_SECONDS)
    return False


def _pids() -> list[int]:
    own = os.getpid()
    names = (entry.name for entry in PROC.iterdir())
    return [int(name) for name in names if name.isdecimal() and int(name) != own]


def _environment(pid: int) -> set[bytes]:
    """Empty for a process that is gone, is a zombie, or belongs to somebody else."""
    try:
        return set((PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    except OSError:
        return set()
