"""The pool: a fixed number of warm worker processes, one job each, killed when they overrun.

    verify_all ──► queue ──► slot thread ──► its worker process        (one thread, one process)
        ▲                       │  no judgement? the process is dead or killed; respawn, and
        └── futures ◄───────────┘  put the job back once: a fresh process takes it

The pool knows outcomes and nothing about rewards. What it promises:

- A job that overruns costs its own worker the deadline and a respawn, twice at most; the other
  workers go on. With all slots taken a job waits in the queue, never longer than its call.
- A worker that failed a verification is never used again, so the retry is always on another one.
- Nothing waits for ever: threads look up once a second, workers are killed by pid.

Measured on 2 cores: 7,000 to 8,000 `integer` and 3,800 to 5,200 `dapo_math` verifications a second
(8,000 characters each) with 1 or 2 workers, and 50 to 80 ms from a kill to a warm replacement. So
there is no spare worker: a lean verifier starts in less time than any sensible deadline. Once one
imports a heavy library, a spare per pool is the first thing to add.
"""

import logging
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Self

from services.reward.metrics import RewardMetrics
from services.reward.process import BrokenWorker, Job, Verification, VerifierProcess

logger = logging.getLogger("dapod.reward")

_LOOK_UP_SECONDS = 1.0
_WARM_SECONDS = 60.0
_RESTART_PAUSE_SECONDS = 1.0
"""Between failed starts, or a verifier that does not import would eat a core."""
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
        workers: int,
        deadline_seconds: float,
        memory_bytes: int,
        metrics: RewardMetrics,
        verifiers_module: str = "services.reward.verifiers",
    ) -> None:
        self.workers = workers
        self._deadline_seconds = deadline_seconds
        self._memory_bytes = memory_bytes
        self._verifiers_module = verifiers_module
        self._metrics = metrics
        self._queue: queue.Queue[_Ticket | None] = queue.Queue()  # None only wakes a thread up
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._processes: dict[int, VerifierProcess] = {}
        self._warm: set[int] = set()
        self._verifiers: tuple[str, ...] = ()
        self._threads = [
            threading.Thread(target=self._run_slot, args=(slot,), name=f"verifier-{slot}")
            for slot in range(workers)
        ]
        metrics.workers.set(workers)
        metrics.queue_depth.set_function(self._queue.qsize)

    def __enter__(self) -> Self:
        """Start the workers; returns at once, see `wait_until_warm`."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill every worker and end every thread. Whatever is unfinished raises PoolStopped."""
        with self._changed:
            self._stopping.set()
            processes = list(self._processes.values())
        for process in processes:
            process.kill()
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
        with self._changed:
            return self._verifiers

    def wait_until_warm(self, seconds: float, *, workers: int | None = None) -> bool:
        """Whether that many workers (all, if not given) are warm in time."""
        wanted = self.workers if workers is None else workers
        with self._changed:
            return self._changed.wait_for(lambda: len(self._warm) >= wanted, seconds)

    def verify_all(self, jobs: Sequence[Job], seconds: float) -> list[Verification]:
        """Judge all jobs side by side, in order; TimeoutError when `seconds` do not suffice."""
        now = time.monotonic()
        tickets = [_Ticket(job=job, give_up_at=now + seconds, queued_at=now) for job in jobs]
        with self._changed:  # `__exit__` empties the queue; nothing may come after that
            if self._stopping.is_set():
                raise PoolStopped
            for ticket in tickets:
                self._queue.put(ticket)
        done, late = wait([ticket.future for ticket in tickets], seconds)
        if late:
            raise TimeoutError(
                f"{len(done)} of {len(jobs)} responses were verified within {seconds:.3g} s"
            )
        return [ticket.future.result(0) for ticket in tickets]

    # One slot: a thread that owns a process and replaces it.

    def _run_slot(self, slot: int) -> None:
        while not self._stopping.is_set():
            try:
                self._run_one_process(slot)
            except (BrokenWorker, OSError) as error:  # OSError: no memory or pids for a process
                if self._stopping.is_set():
                    return
                self._metrics.worker_start_failures.inc()
                logger.error("%s; trying again in %g s", error, _RESTART_PAUSE_SECONDS)
                self._stopping.wait(_RESTART_PAUSE_SECONDS)

    def _run_one_process(self, slot: int) -> None:
        process = self._spawn(slot)
        try:
            self._warm_up(slot, process)
            self._use(process)
        finally:
            self._discard(slot, process)

    def _spawn(self, slot: int) -> VerifierProcess:
        # Under the lock, so that `__exit__` either finds this process or none is started after it.
        with self._changed:
            if self._stopping.is_set():
                raise BrokenWorker("the pool is stopping")
            process = VerifierProcess(
                verifiers_module=self._verifiers_module, memory_bytes=self._memory_bytes
            )
            self._processes[slot] = process
        return process

    def _warm_up(self, slot: int, process: VerifierProcess) -> None:
        process.wait_until_warm(_WARM_SECONDS)
        with self._changed:
            self._warm.add(slot)
            self._verifiers = process.verifiers
            self._metrics.workers_warm.set(len(self._warm))
            self._changed.notify_all()

    def _discard(self, slot: int, process: VerifierProcess) -> None:
        process.close()
        with self._changed:
            del self._processes[slot]
            self._warm.discard(slot)
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
                self._verify(process, ticket)

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
        ticket.future.set_result(replace(verification, seconds=ticket.seconds))
