"""One `dapod` at a time in a directory."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dapod.config import ConfigError

_WAIT_SECONDS = 3.0


@contextmanager
def locked(directory: Path, command: str) -> Iterator[int]:
    """Holds `directory` for `dapod <command>`; gives the lock's descriptor.

    A command that was killed leaves the lock to its reaper, so this waits a few seconds.
    Raises `ConfigError` when somebody keeps it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a+") as file:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not _try_lock(file.fileno()):
            if time.monotonic() > deadline:
                pid = (directory / ".lock").read_text().strip() or "unknown"
                raise ConfigError(
                    f"{directory} is in use by another dapod {command} (process {pid})"
                )
            time.sleep(0.1)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
