"""One warm worker process, seen from the service: start it, ask it, kill it.

Started as a new program, not with `multiprocessing`: `Popen` without `preexec_fn` is vfork and
exec, so no Python of ours runs in a forked copy of a process with gRPC threads, no forkserver has
to be made before gRPC, and nothing is pickled (invariant 10). It costs about 60 ms (measured, see
`pool`), which a worker only pays after a kill.

Every wait here has a deadline. Not thread-safe but for `kill`: one thread owns a process, and that
thread must live as long as it does (Linux ties "die with the parent" to the thread).
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from dapod.types import Outcome

MAX_REPLY_BYTES = 64 * 1024
_EXIT_SECONDS = 0.2
_REAP_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One response to judge."""

    verifier: str
    response: str
    answer: str
    group_id: str = ""
    """For log lines only."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What came of a job. Example: Verification(outcome=Outcome.TIMEOUT, seconds=2.0)"""

    outcome: Outcome
    extracted: str | None = None
    detail: str | None = None
    """What went wrong, for the log, when the outcome is no judgement."""
    seconds: float = 0.0
    """Time a worker spent on it, a retry included; waiting for a worker is not."""


class BrokenWorker(Exception):
    """The process answered something that is no reply, or ended while it started."""


class VerifierProcess:
    """A started worker. Use `wait_until_warm` once, then `judge` until it is no longer `alive`."""

    def __init__(self, *, verifiers_module: str, memory_bytes: int) -> None:
        self._connection, theirs = socket.socketpair()
        self._received = b""
        self.verifiers: tuple[str, ...] = ()
        """The names it can judge by; known once warm."""
        with theirs:
            self._popen = subprocess.Popen(
                [
                    *(sys.executable, "-m", "services.reward.worker"),
                    *("--verifiers", verifiers_module),
                    *("--memory-bytes", str(memory_bytes)),
                ],
                stdin=theirs.fileno(),
                # The worker finds the packages that the service found.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                # Ctrl-C is for the service, which lets its workers finish what they have.
                start_new_session=True,
            )
        self.pid = self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def wait_until_warm(self, seconds: float) -> None:
        """Raise BrokenWorker or TimeoutError, the process killed, if it does not get there."""
        try:
            self.verifiers = tuple(self._receive(time.monotonic() + seconds)["verifiers"])
        except (ConnectionError, TimeoutError, BrokenWorker) as error:
            self.kill()
            raise BrokenWorker(f"verifier worker did not start: {self._exit(error)}") from error

    def judge(self, job: Job, seconds: float) -> Verification:
        """Never raises for what the job does. Whatever is no judgement leaves the process dead.

        That includes a verifier that raised: it may have left anything behind, and the retry is
        owed another process.
        """
        started = time.monotonic()
        try:
            outcome, text = self._ask(job, started + seconds)
        except TimeoutError:
            outcome, text = Outcome.TIMEOUT, f"no answer within {seconds:g} s"
        except ConnectionError as error:
            outcome, text = Outcome.KILLED, self._exit(error)
        except BrokenWorker as error:
            outcome, text = Outcome.ERROR, str(error)
        taken = time.monotonic() - started
        if outcome.judged:
            return Verification(outcome=outcome, extracted=text, seconds=taken)
        self.kill()
        return Verification(outcome=outcome, detail=text, seconds=taken)

    def kill(self) -> None:
        """SIGKILL, by pid; safe to repeat and from another thread."""
        self._popen.kill()
        self._popen.wait(_REAP_SECONDS)

    def close(self) -> None:
        self.kill()
        self._connection.close()

    def _ask(self, job: Job, deadline: float) -> tuple[Outcome, str | None]:
        message = {"verifier": job.verifier, "response": job.response, "answer": job.answer}
        self._connection.settimeout(_left(deadline))
        self._connection.sendall(json.dumps(message).encode() + b"\n")
        return _outcome(self._receive(deadline))

    def _receive(self, deadline: float) -> dict[str, Any]:
        """One line; it may come in pieces, but neither late nor long."""
        while b"\n" not in self._received:
            self._connection.settimeout(_left(deadline))
            piece = self._connection.recv(MAX_REPLY_BYTES)
            if not piece:
                raise ConnectionResetError("the worker closed its socket")
            self._received += piece
            if len(self._received) > MAX_REPLY_BYTES:
                raise BrokenWorker(f"the worker's reply is over {MAX_REPLY_BYTES} bytes")
        line, _, self._received = self._received.partition(b"\n")
        return _parsed(line)

    def _exit(self, error: Exception) -> str:
        """How it ended, for the log; the socket closes a moment before the process is gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_EXIT_SECONDS)
        self.kill()
        return f"{error} (exit status {self._popen.returncode})"


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:  # settimeout(0) would mean "do not block" and raise another error
        raise TimeoutError
    return left


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(line)
    except ValueError as error:
        raise BrokenWorker(f"the worker's reply is not JSON: {line[:40]!r}") from error
    if not isinstance(reply, dict):
        raise BrokenWorker(f"the worker's reply is not an object: {line[:40]!r}")
    return reply


def _outcome(reply: dict[str, Any]) -> tuple[Outcome, str | None]:
    """A verifier may return nonsense; whatever is not a Judgement is an error, not a verdict."""
    extracted = reply.get("extracted")
    match reply:
        case {"correct": True, "extracted": str()}:
            return Outcome.CORRECT, extracted
        case {"correct": False, "extracted": str()}:
            return Outcome.WRONG, extracted
        case {"correct": None, "extracted": None}:
            return Outcome.UNPARSED, None
        case {"error": str(error)}:
            return Outcome.ERROR, error
    raise BrokenWorker(f"the verifier returned no judgement: {str(reply)[:80]}")
