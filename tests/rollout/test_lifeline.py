"""A process that holds a lifeline dies with the process at its other end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from services.rollout.lifeline import Lifeline
Lifeline().hold_lifeline(int(sys.argv[1]))
print("holding", flush=True)
time.sleep(60)
"""


def test_kill_9_of_the_parent_ends_the_holder() -> None:
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(parent.pid)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(10)
        assert holder.wait(10) == -signal.SIGKILL
    finally:
        for process in (parent, holder):
            process.kill()
            process.wait(10)
        assert holder.stdout is not None
        holder.stdout.close()
