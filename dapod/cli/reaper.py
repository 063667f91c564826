"""The reaper: outlives a runner that was killed, and kills what the runner had started.

    runner ──stdin pipe: the run's token, then silence──► reaper ──end of file──► SIGKILL by token

Only the runner holds the write end, so end of file means that the runner is gone, however it went.
After an orderly end nothing is left to kill. Last it removes the temporary files of what is gone.
The reaper does not carry the token itself. It is given the run directory's lock to hold, so the
directory is free only when nothing of the run is alive.
"""

import signal
import sys

from dapod.cli import scratch
from dapod.cli.processes import TOKEN, kill_all

DEADLINE_SECONDS = 60.0


def main() -> int:
    """Waits for the end of standard input, then kills."""
    # The terminal's Ctrl-C is the runner's to answer; the reaper ends when the runner has.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    token = sys.stdin.readline().strip()
    while sys.stdin.readline():
        pass
    if not token:
        return 1
    gone = kill_all({TOKEN: token}, deadline_seconds=DEADLINE_SECONDS)
    scratch.remove(token)
    return 0 if gone else 1


if __name__ == "__main__":
    sys.exit(main())
