"""The template process, seen from the service: start it, have it fork workers and end them.

Started as a new program, not with `multiprocessing`: `Popen` without `preexec_fn` is vfork and
exec, so no Python of ours runs in a forked copy of a process with gRPC threads, and nothing is
pickled (invariant 10). Loading verifiers costs it 0.1 to 4 s, once; see `worker` for what follows.

Linux ties "die with the parent" to the thread that started a process: that one must live as long.
Every wait here has a deadline. `start_worker` may be called from any thread.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from services.reward.process import BrokenWorker, VerifierProcess
from services.reward.worker import START

_MESSAGE_BYTES = 64 * 1024
_REPLY_SECONDS = 10.0
_EXIT_SECONDS = 5.0
_GONE_SECONDS = 0.2
"""The socket closes a moment before the process is gone and its status known."""


class VerifierRefused(BrokenWorker):
    """The process cannot judge by a name it was given; the message says what to change."""


class WorkerTemplate:
    def __init__(self, *, verifiers: Sequence[str], memory_bytes: int) -> None:
        self._control, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._asking = threading.Lock()
        self.verifiers: tuple[str, ...] = ()
        """The names its workers judge by; known once warm."""
        with theirs:
            self._popen = subprocess.Popen(
                [
                    *(sys.executable, "-m", "services.reward.worker"),
                    *("--memory-bytes", str(memory_bytes)),
                    *verifiers,
                ],
                stdin=theirs.fileno(),
                env={
                    **os.environ,
                    # The worker finds the packages that the service found.
                    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
                    # A worker is one core's work; numpy would start a thread for each.
                    "OMP_NUM_THREADS": "1",
                },
                # Ctrl-C is for the service, which lets its workers finish what they have.
                start_new_session=True,
            )
        self.pid = self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def wait_until_warm(
        self, seconds: float, loading: Callable[[str], None] = lambda _: None
    ) -> None:
        """Raise BrokenWorker if it does not get there, VerifierRefused if that is for the user.

        Each verifier has `seconds` to load; `loading` is told its name when it begins.
        """
        name = None
        while "verifiers" not in (reply := self._told(seconds, name)):
            if "refused" in reply:
                raise VerifierRefused(reply["refused"])
            name = reply["loading"]
            loading(name)
        self.verifiers = tuple(reply["verifiers"])

    def _told(self, seconds: float, loading: str | None) -> dict[str, Any]:
        try:
            return self._received(seconds)
        except BrokenWorker as error:
            if isinstance(error.__cause__, TimeoutError):
                raise VerifierRefused(f"{loading!r} did not load within {seconds:g} s") from error
            raise BrokenWorker(f"{error} while {loading!r} was loading") from error

    def start_worker(self) -> VerifierProcess:
        """Ready to judge. BrokenWorker when there is none to be had."""
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._asking:
                with self._broken_on_failure():
                    socket.send_fds(self._control, [START], [theirs.fileno()])
                pid = self._received(_REPLY_SECONDS)["pid"]
        except BaseException:
            ours.close()
            raise
        return VerifierProcess(
            connection=ours, pid=pid, end=self._end, template_alive=lambda: self.alive
        )

    def kill(self) -> None:
        """SIGKILL, by pid; its workers die with it. Safe to repeat and from another thread."""
        self._popen.kill()
        self._popen.wait(_EXIT_SECONDS)

    def close(self) -> None:
        """Its workers are killed and reaped by it, if it can still do that."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for a reply, too
        if self.verifiers:  # one that is still loading does not listen
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_EXIT_SECONDS)
        self.kill()
        with self._asking:
            self._control.close()

    def _end(self, pid: int) -> int | None:
        """Kill a worker; its exit status, or None when the template is gone and it with it."""
        try:
            with self._asking:
                with self._broken_on_failure():
                    self._control.sendall(str(pid).encode())
                status: int = self._received(_REPLY_SECONDS)["status"]
                return status
        except BrokenWorker:
            return None

    def _received(self, seconds: float) -> dict[str, Any]:
        with self._broken_on_failure():
            self._control.settimeout(seconds)
            message = self._control.recv(_MESSAGE_BYTES)
            if not message:
                raise ConnectionResetError("the template closed its socket")
            reply: dict[str, Any] = json.loads(message)
            return reply

    @contextlib.contextmanager
    def _broken_on_failure(self) -> Iterator[None]:
        """Half a dialogue cannot be resumed: one that is late is killed, one that left is gone."""
        try:
            yield
        except OSError as error:
            if isinstance(error, TimeoutError):
                self.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_GONE_SECONDS)
            status = self._popen.returncode
            raise BrokenWorker(f"no verifier workers: {error} (exit status {status})") from error
