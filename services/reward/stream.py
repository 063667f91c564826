"""JSON lines through a pool: {"response": …, "answer": …} in, a verdict a line out, in order.

    lines ─► caller's thread: submit ─► window of open futures ─► writer thread ─► verdicts

It streams: a verdict is written as soon as it and those before it are there, and input is read no
further ahead than the window. A malformed line is an `error` with its reason, and the stream goes
on. The reward is eq. 7's 1 or -1; the overlong term (eq. 13) needs a run's limits and a number of
tokens, which text has not.
"""

import json
import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, BinaryIO

from dapod import algorithm
from dapod.types import Outcome
from services.reward.pool import PoolStopped, VerifierPool
from services.reward.process import Job, Verification

LINES_PER_WORKER = 16
"""The window: enough to keep the others busy beside a slow one, and few lines in memory."""

MAX_LINE_BYTES = 32 * 1024 * 1024
_LOOK_UP_SECONDS = 0.2


class VerdictStream:
    def __init__(self, *, pool: VerifierPool, verifier: str, verdicts: BinaryIO) -> None:
        self._pool = pool
        self._verifier = verifier
        self._verdicts = verdicts
        self._window: queue.Queue[Future[Verification] | None] = queue.Queue(
            pool.workers * LINES_PER_WORKER
        )
        self._failure: BaseException | None = None
        # A daemon: who is interrupted must not wait for what is still in the window.
        self._writer = threading.Thread(target=self._write, name="writer", daemon=True)

    def run(self, lines: BinaryIO) -> None:
        """Until `lines` end. OSError when nobody takes the verdicts any more."""
        self._writer.start()
        for line in _lines(lines):
            self._put(self._submitted(line))
            if self._failure:
                break
        self._put(None)
        self._writer.join()
        if self._failure:
            raise self._failure

    def _submitted(self, line: bytes | None) -> "Future[Verification]":
        """A malformed line's future is finished already, and keeps its place."""
        try:
            # The window, and not a caller's patience, bounds how long a job waits.
            return self._pool.submit(_job(self._verifier, line), sys.float_info.max)
        except (ValueError, RecursionError) as error:  # RecursionError: JSON nested without end
            future: Future[Verification] = Future()
            detail = f"malformed line: {error}"
            future.set_result(Verification(outcome=Outcome.ERROR, detail=detail))
            return future

    def _put(self, entry: "Future[Verification] | None") -> None:
        """Wait for room, but not for a writer that has ended."""
        while not self._failure:
            try:
                return self._window.put(entry, timeout=_LOOK_UP_SECONDS)
            except queue.Full:
                continue

    def _write(self) -> None:
        try:
            while (future := self._window.get()) is not None:
                verdict = _verdict(future.result())  # the pool ends every job, twice at most
                self._verdicts.write(json.dumps(verdict).encode() + b"\n")
                self._verdicts.flush()
        except (OSError, PoolStopped) as error:
            self._failure = error


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """None for a line that is too long, read past piece by piece."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES)
        yield None


def _job(verifier: str, line: bytes | None) -> Job:
    if line is None:
        raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError('not an object like {"response": "…", "answer": "…"}')
    for name in ("response", "answer"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"{name!r} is {'not a text' if name in row else 'missing'}")
    return Job(verifier=verifier, response=row["response"], answer=row["answer"])


def _verdict(verification: Verification) -> dict[str, Any]:
    outcome = verification.outcome
    correct = outcome is Outcome.CORRECT if outcome.judged else None
    verdict = {
        "outcome": outcome,
        "correct": correct,
        "reward": None if correct is None else algorithm.reward(correct, 0.0),
        "extracted": verification.extracted,
        "seconds": round(verification.seconds, 6),
    }
    return verdict if outcome.judged else verdict | {"error": verification.detail}
