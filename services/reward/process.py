"""One warm worker process, seen from the service: ask it, kill it.

Every wait here has a deadline. Not thread-safe: one thread owns a process. It was forked by a
template process, which alone can kill and reap it without mistaking another process for it.
"""

import json
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dapod.types import Outcome

MAX_RESPONSE_CHARACTERS = 4 * 1024 * 1024  # 20,480 tokens of 200 characters
MAX_REPLY_BYTES = 64 * 1024


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
    """A process answered something that is no reply, or could not be started."""


class VerifierProcess:
    """A started worker, warm from the first moment; of use until it is no longer `alive`."""

    def __init__(
        self,
        *,
        connection: socket.socket,
        pid: int,
        end: Callable[[int], int | None],
        template_alive: Callable[[], bool],
    ) -> None:
        """`end` kills by pid, if need be, and returns the exit status, if it can be known."""
        self.pid = pid
        self._connection = connection
        self._end = end
        self._template_alive = template_alive
        self._ended = False
        self._status: int | None = None
        self._received = b""

    @property
    def alive(self) -> bool:
        """Between two jobs: a worker says nothing unasked, so what can be read is its end. It dies
        a moment after its template."""
        return not self._ended and self._template_alive() and not _readable(self._connection)

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
        """SIGKILL; safe to repeat."""
        if not self._ended:
            self._ended = True
            self._status = self._end(self.pid)

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
        """How it ended, for the log."""
        self.kill()
        return f"{error} (exit status {self._status})"


def _readable(connection: socket.socket) -> bool:
    """Now. Not `select.select`, which raises for a descriptor above 1,023."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


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
