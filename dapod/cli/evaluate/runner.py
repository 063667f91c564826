"""One start of an evaluation: services up, the open problems through them, services down.

    reaper ─► supervisor: reward, engine ─► both ready ─► threads ask ─► lines written ─► stop

Whatever happens, nothing it started outlives `run()`; a killed command leaves that to its reaper.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from dapod.cli.evaluate.asking import Asker
from dapod.cli.evaluate.bar import bar, worth_a_line
from dapod.cli.evaluate.output import Output
from dapod.cli.evaluate.problems import Problem
from dapod.cli.evaluate.record import Answered, ProblemRecord
from dapod.cli.evaluate.tally import Tally
from dapod.cli.fleet import ServiceSpec
from dapod.cli.guard import Guard
from dapod.cli.readiness import Readiness, ReadinessPoll
from dapod.cli.restarts import OnceReady
from dapod.cli.service_progress import Bar, ServiceProgress, view_of
from dapod.cli.signals import Signals
from dapod.cli.supervisor import Supervisor

_TICK_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class RunnerParts:
    """What one start is made of."""

    specs: Sequence[ServiceSpec]
    output: Output
    progress: ServiceProgress
    problems: Sequence[Problem]
    """Those that are not finished."""
    records: Sequence[ProblemRecord]
    """Those that are."""
    asker: Callable[[threading.Event], Asker]
    """Given the event that ends its waits."""
    in_flight: int
    """Problems at a time."""
    tally: Callable[[Sequence[ProblemRecord]], Tally]


class EvaluationRunner:
    def __init__(self, parts: RunnerParts) -> None:
        self._parts = parts
        self._token = uuid.uuid4().hex
        self._woken = threading.Event()
        self._signals = Signals(self._woken)
        self._stop = threading.Event()
        self._finished: queue.SimpleQueue[Future[Answered]] = queue.SimpleQueue()
        self._records = list(parts.records)
        self._start = 1 + max((record.start for record in parts.records), default=0)
        self._began: float | None = None
        self._mentioned = len(parts.records)
        self._supervisor = Supervisor(
            parts.specs,
            may_end="",
            token=self._token,
            run_dir=parts.output.path,
            say=parts.progress.say,
            budget=lambda: OnceReady(lambda: self._began is not None),
        )

    def run(self, lock_descriptor: int) -> int:
        """0 when all problems are finished, else the number of the signal that stopped it.

        Raises `ConfigError`, `TooManyRestarts` and `ProblemFailed`.
        """
        asker = self._parts.asker(self._stop)
        threads = ThreadPoolExecutor(self._parts.in_flight, thread_name_prefix="problem")
        with self._signals.caught(), Guard(self._token, lock_descriptor) as guard:
            try:
                self._work(guard, asker, threads)
            finally:
                self._end(asker, threads)
        return self._signals.numbers[0] if self._signals.came else 0

    def _work(self, guard: Guard, asker: Asker, threads: ThreadPoolExecutor) -> None:
        names = [spec.name for spec in self._parts.specs]
        self._supervisor.start(names)
        ops_ports = {spec.name: spec.ops_port for spec in self._parts.specs if spec.ops_port}
        with ReadinessPoll(ops_ports) as readiness:
            while not self._signals.came:
                guard.check()
                self._supervisor.poll()
                answers = readiness.latest()
                if self._began is None and self._all_ready(answers):
                    self._begin(asker, threads)
                self._collect()
                self._show(answers)
                if len(self._records) == self._total:
                    return
                self._woken.wait(_TICK_SECONDS)
                self._woken.clear()

    @property
    def _total(self) -> int:
        return len(self._parts.records) + len(self._parts.problems)

    def _all_ready(self, answers: dict[str, Readiness]) -> bool:
        return all(spec.name in answers and answers[spec.name].ready for spec in self._parts.specs)

    def _begin(self, asker: Asker, threads: ThreadPoolExecutor) -> None:
        self._began = time.monotonic()
        for problem in self._parts.problems:
            threads.submit(asker.ask, problem).add_done_callback(self._note)

    def _note(self, asked: Future[Answered]) -> None:
        """In the thread that asked."""
        self._finished.put(asked)
        self._woken.set()

    def _collect(self) -> None:
        """Writes down what is finished; raises what a thread raised."""
        while not self._finished.empty():
            answered = self._finished.get().result()
            record = ProblemRecord.of(
                answered, start=self._start, elapsed_seconds=self._elapsed_seconds
            )
            self._parts.output.append(answered, record)
            self._records.append(record)

    @property
    def _elapsed_seconds(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began

    def _show(self, answers: dict[str, Readiness]) -> None:
        progress, specs = self._parts.progress, self._parts.specs
        shown = self._bar()
        progress.show([view_of(spec, self._supervisor, answers) for spec in specs], shown)
        if worth_a_line(shown.done, self._mentioned, shown.total):
            self._mentioned = shown.done
            progress.say(shown.text)

    def _bar(self) -> Bar:
        return bar(
            self._parts.tally(self._records),
            total=self._total,
            before=len(self._parts.records),
            elapsed_seconds=self._elapsed_seconds,
        )

    def _end(self, asker: Asker, threads: ThreadPoolExecutor) -> None:
        # The calls end first: gRPC complains on stderr of a server that goes before they have.
        self._stop.set()
        asker.close()
        threads.shutdown(wait=True, cancel_futures=True)
        gone = self._supervisor.stop(hurry=lambda: self._signals.hurry)
        if not gone:
            self._parts.progress.say("some processes of this evaluation could not be killed")
