"""The pool: a fixed number of warm worker processes, one job each, killed when they overrun.

    verify_all ──► queue ──► slot thread ──► its worker process        (one thread, one process)
        ▲                       │  no judgement? the process is dead or killed; the nursery has
        └── futures ◄───────────┘  the next, and the job goes back once: another takes it

The pool knows outcomes and nothing about rewards. What it promises:

- A job that overruns costs its own worker the deadline and a fork, twice at most; the other
  workers go on. With all slots taken a job waits in the queue, never longer than its call.
- A worker that failed a verification is never used again, so the retry is always on another one.
- Nothing waits for ever: threads look up once a second, workers are killed by pid. What a thread
  did not expect is an `error` for its job; the thread goes on.

A replacement is forked from a template that has the verifiers loaded (see `nursery`), so no spare
worker is kept. Measured on 2 busy cores, fork to first verdict: `integer` 2 ms, `math_verify` 10 ms
(8 MB of its own); a process that imports Math-Verify afresh needs 0.9 s, beside others 2 to 3.5 s.
With those and one warm spare, 169 hostile responses took 269 s, 47 s of it deadlines, the rest
waiting for workers. `bench/reward` measures throughput.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Self

from dapod.types import Outcome
from services.reward.metrics import RewardMetrics
from services.reward.nursery import Nursery
from services.reward.process import (
    MAX_RESPONSE_CHARACTERS,
    Job,
    Verification,
    VerifierProcess,
)
from services.reward.template import WorkerTemplate

logger = logging.getLogger("dapod.reward")

_LOOK_UP_SECONDS = 1.0
_JOIN_SECONDS = 10.0


class PoolStopped(Exception):
    """The pool is shutting down; the verification was not done."""


@dataclass(kw_only=True)
class _Ticket:
    """A job on its way through the queue."""

    job: Job
    give_up_at: float
    queued_at: float
    retried: bool = False
    seconds: float = 0.0
    future: "Future[Verification]" = field(default_factory=Future)


class VerifierPool:
    def __init__(
        self,
        *,
        verifiers: Sequence[str],
        workers: int,
        deadline_seconds: float,
        memory_bytes: int,
        metrics: RewardMetrics,
    ) -> None:
        self.workers = workers
        self._deadline_seconds = deadline_seconds
        self._metrics = metrics
        self._nursery = Nursery(
            start=lambda: WorkerTemplate(verifiers=verifiers, memory_bytes=memory_bytes),
            metrics=metrics,
        )
        self._queue: queue.Queue[_Ticket | None] = queue.Queue()  # None only wakes a thread up
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._warm: set[int] = set()
        self._threads = [
            threading.Thread(target=self._run_slot, args=(slot,), name=f"verifier-{slot}")
            for slot in range(workers)
        ]
        metrics.workers.set(workers)
        metrics.queue_depth.set_function(self._queue.qsize)

    def __enter__(self) -> Self:
        """Start the workers; returns at once, see `wait_until_warm`."""
        self._nursery.__enter__()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill every worker and end every thread. Whatever is unfinished raises PoolStopped."""
        with self._changed:
            self._stopping.set()
        self._nursery.__exit__()
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
        while not self._queue.empty():
            if (ticket := self._queue.get_nowait()) is not None:
                ticket.future.set_exception(PoolStopped())

    @property
    def warm(self) -> int:
        """How many workers have loaded the verifiers; a busy one is warm too."""
        with self._changed:
            return len(self._warm)

    @property
    def verifiers(self) -> tuple[str, ...]:
        """The names it can judge by, as the workers said; empty until one was warm."""
        return self._nursery.verifiers

    @property
    def refusal(self) -> str | None:
        """Why the workers cannot judge by a name they were given: for the user to change."""
        return self._nursery.refusal

    @property
    def waiting_for(self) -> str:
        """What there is no worker for yet, in words; empty when there may be some."""
        return self._nursery.waiting_for

    def wait_until_warm(self, seconds: float, *, workers: int | None = None) -> bool:
        """Whether that many workers (all, if not given) are warm in time."""
        wanted = self.workers if workers is None else workers
        with self._changed:
            return self._changed.wait_for(lambda: len(self._warm) >= wanted, seconds)

    def verify_all(self, jobs: Sequence[Job], seconds: float) -> list[Verification]:
        """Judge all jobs side by side, in order; TimeoutError when `seconds` do not suffice."""
        futures = [self.submit(job, seconds) for job in jobs]
        done, late = wait(futures, seconds)
        if late:
            raise TimeoutError(
                f"{len(done)} of {len(jobs)} responses were verified within {seconds:.3g} s"
            )
        return [future.result(0) for future in futures]

    def submit(self, job: Job, seconds: float) -> "Future[Verification]":
        """Judge one job; nobody begins with it after `seconds`, and the future stays open.

        A response that is too long is an `error`: to refuse it would refuse its group, for ever.
        """
        now = time.monotonic()
        ticket = _Ticket(job=job, give_up_at=now + seconds, queued_at=now)
        if len(job.response) > MAX_RESPONSE_CHARACTERS:
            self._leave_out(ticket, f"the response has over {MAX_RESPONSE_CHARACTERS} characters")
            return ticket.future
        with self._changed:  # `__exit__` empties the queue; nothing may come after that
            if self._stopping.is_set():
                raise PoolStopped
            self._queue.put(ticket)
        return ticket.future

    def _leave_out(self, ticket: _Ticket, why: str) -> None:
        job = ticket.job
        logger.warning("group=%s verifier=%s not tried: %s", job.group_id, job.verifier, why)
        self._finish(ticket, Verification(outcome=Outcome.ERROR, detail=why))

    # One slot: a thread that uses one process after the other.

    def _run_slot(self, slot: int) -> None:
        """A bug of ours costs a job and a worker; a slot that died of it would never come back."""
        while not self._stopping.is_set():
            try:
                self._employ_one(slot)
            except Exception:
                logger.exception("verifier slot %d goes on with another worker", slot)
                self._stopping.wait(_LOOK_UP_SECONDS)  # it may be the same again

    def _employ_one(self, slot: int) -> None:
        """A worker from its first job to its end."""
        if (process := self._nursery.worker()) is None:  # the nursery closes
            return
        self._set_warm(slot, True)
        try:
            self._use(process)
        finally:
            self._set_warm(slot, False)
            process.close()

    def _set_warm(self, slot: int, warm: bool) -> None:
        with self._changed:
            (self._warm.add if warm else self._warm.discard)(slot)
            self._metrics.workers_warm.set(len(self._warm))
            self._changed.notify_all()

    def _use(self, process: VerifierProcess) -> None:
        """Serve the queue until the process is dead or the pool stops."""
        while process.alive and not self._stopping.is_set():
            try:
                ticket = self._queue.get(timeout=_LOOK_UP_SECONDS)
            except queue.Empty:
                continue
            if ticket is not None and ticket.give_up_at > time.monotonic():
                if not process.alive:  # it died while it waited, through no fault of this job's
                    self._queue.put(ticket)
                    return
                with self._answered(ticket):
                    self._verify(process, ticket)

    @contextlib.contextmanager
    def _answered(self, ticket: _Ticket) -> Iterator[None]:
        """Whatever rises here, somebody waits for the ticket."""
        try:
            yield
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
            job = ticket.job
            logger.error("group=%s verifier=%s given up: %s", job.group_id, job.verifier, detail)
            self._finish(ticket, Verification(outcome=Outcome.ERROR, detail=detail))
            raise

    def _verify(self, process: VerifierProcess, ticket: _Ticket) -> None:
        if not ticket.retried:
            self._metrics.wait_seconds.observe(time.monotonic() - ticket.queued_at)
        with self._metrics.workers_busy.track_inprogress():
            verification = process.judge(ticket.job, self._deadline_seconds)
        ticket.seconds += verification.seconds
        if self._stopping.is_set() and not verification.outcome.judged:
            ticket.future.set_exception(PoolStopped())
        elif verification.outcome.judged:
            self._finish(ticket, verification)
        else:
            self._failed(process, ticket, verification)

    def _failed(
        self, process: VerifierProcess, ticket: _Ticket, verification: Verification
    ) -> None:
        outcome = verification.outcome
        self._metrics.kills.labels(outcome=outcome).inc()
        logger.warning(
            "group=%s verifier=%s worker=%d %s attempt: %s (%s)",
            ticket.job.group_id,
            ticket.job.verifier,
            process.pid,
            "second" if ticket.retried else "first",
            outcome,
            verification.detail,
        )
        if ticket.retried:
            self._finish(ticket, verification)
        else:
            self._metrics.retries.labels(outcome=outcome).inc()
            ticket.retried = True
            self._queue.put(ticket)

    def _finish(self, ticket: _Ticket, verification: Verification) -> None:
        verifier = ticket.job.verifier
        self._metrics.verifications.labels(verifier=verifier, outcome=verification.outcome).inc()
        self._metrics.verification_seconds.labels(verifier=verifier).observe(ticket.seconds)
        self._metrics.last_progress.set_to_current_time()
        ticket.future.set_result(replace(verification, seconds=ticket.seconds))
