"""The temporary files of one start of `dapod`: a directory of its own, which ends with it.

vLLM and torchrun leave sockets and directories behind when they are killed, and here they may be
killed at any time. So all processes get a TMPDIR that the reaper removes once they are gone. Its
path is short: that of a Unix socket has at most 107 bytes, and vLLM adds 37 to TMPDIR
(`get_open_zmq_ipc_path`).
"""

import shutil
import tempfile
from pathlib import Path

VARIABLE = "TMPDIR"


def directory_of(token: str) -> Path:
    """Follows from the token, so the reaper needs to be told nothing else."""
    return Path(tempfile.gettempdir()) / f"dapod-{token[:12]}"


def make(token: str) -> None:
    """For this user alone."""
    directory_of(token).mkdir(mode=0o700)


def remove(token: str) -> None:
    """With everything in it, as far as it can be removed."""
    shutil.rmtree(directory_of(token), ignore_errors=True)
