"""Ends the engine's processes when the rollout process is gone, however it went.

vLLM's engine core does not notice that its parent was killed -9: it stays, idle, with all its
memory. This class is mixed into vLLM's worker (`worker_extension_cls`), so it runs inside that
process; it imports nothing heavy. With several workers per engine the core ends itself when its
workers do.

It is held from the moment the engine has started. What a rollout leaves that is killed before is
ended by whoever started the rollout: `dapod run`, or the container.
"""

from __future__ import annotations

import os
import select
import signal
import threading


class Lifeline:
    """Called in every worker of the engine with `collective_rpc("hold_lifeline", args=(pid,))`."""

    def hold_lifeline(self, pid: int) -> None:
        """From now on this process dies with process `pid`."""
        descriptor = os.pidfd_open(pid)
        threading.Thread(target=_die_with, args=(descriptor,), name="lifeline", daemon=True).start()


def _die_with(descriptor: int) -> None:
    # Readable when that process has ended; waiting for it is this thread's whole purpose.
    select.select([descriptor], [], [])
    os.kill(os.getpid(), signal.SIGKILL)
