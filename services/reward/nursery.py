"""The nursery: keeps the template process alive, from which every worker is forked.

    nursery thread:  start a template ─► wait until warm ─► watch it ─► gone? start another
    slot thread:     worker() ─► use ─► dead? discard, worker() …

The thread stays until the end, since the template dies with it (see `template`), and with the
template every worker.
"""

import logging
import threading
from collections.abc import Callable
from typing import Self

from services.reward.metrics import RewardMetrics
from services.reward.process import BrokenWorker, VerifierProcess
from services.reward.template import VerifierRefused, WorkerTemplate

logger = logging.getLogger("dapod.reward")

LOAD_SECONDS = 600.0
"""One verifier's: a user's own may read a large model or table when it is imported."""

_LOOK_UP_SECONDS = 1.0
_RESTART_PAUSE_SECONDS = 1.0
"""Between failed starts, or a verifier that does not import would eat a core."""
_JOIN_SECONDS = 10.0


class Nursery:
    def __init__(self, *, start: Callable[[], WorkerTemplate], metrics: RewardMetrics) -> None:
        self._start = start
        self._metrics = metrics
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._template: WorkerTemplate | None = None  # a warm one
        self._starting: WorkerTemplate | None = None
        self._loading = ""
        self._failure = ""
        self._refusal: str | None = None
        self._verifiers: tuple[str, ...] = ()
        self._thread = threading.Thread(target=self._run, name="nursery")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill every worker, and wake everybody who waits for one."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
            if self._starting is not None:  # it may load for minutes yet
                self._starting.kill()
        self._thread.join(_JOIN_SECONDS)

    @property
    def refusal(self) -> str | None:
        """Why no worker can judge by the names it was given; None if one can, or none is known."""
        with self._changed:
            return self._refusal

    @property
    def waiting_for(self) -> str:
        """What there are no workers for yet; empty while there may be some."""
        with self._changed:
            return "; ".join(filter(None, (self._loading, self._failure)))

    @property
    def verifiers(self) -> tuple[str, ...]:
        """What the workers judge by; empty until the template was warm."""
        with self._changed:
            return self._verifiers

    def worker(self) -> VerifierProcess | None:
        """A new worker, the caller's to close; None when the nursery closes."""
        while (template := self._warm_template()) is not None:
            try:
                return template.start_worker()
            except (BrokenWorker, OSError) as error:  # OSError: no descriptors for a socket
                self._failed(error)
        return None

    def _warm_template(self) -> WorkerTemplate | None:
        with self._changed:
            while not self._stopping.is_set():
                if self._template is not None and self._template.alive:
                    return self._template
                self._changed.wait(_LOOK_UP_SECONDS)
        return None

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._keep(self._start())
            except Exception as error:  # without this thread no slot would ever have a worker again
                self._failed(error)

    def _keep(self, template: WorkerTemplate) -> None:
        """From its start to its end."""
        try:
            self._warm_up(template)
            with self._changed:
                self._template, self._verifiers = template, template.verifiers
                self._refusal, self._failure = None, ""
                self._changed.notify_all()
                while template.alive and not self._stopping.is_set():
                    self._changed.wait(_LOOK_UP_SECONDS)
        finally:
            with self._changed:
                self._template = None
            template.close()

    def _warm_up(self, template: WorkerTemplate) -> None:
        with self._changed:
            if self._stopping.is_set():
                raise BrokenWorker("the pool closes")
            self._starting = template
        try:
            template.wait_until_warm(LOAD_SECONDS, self._loads)
        finally:
            with self._changed:
                self._starting, self._loading = None, ""

    def _loads(self, name: str) -> None:
        with self._changed:
            self._loading = f"{name!r} is loading, for {LOAD_SECONDS:g} s at most"
        logger.info("the verifier %s", self._loading)

    def _failed(self, error: Exception) -> None:
        if self._stopping.is_set():
            return
        self._metrics.worker_start_failures.inc()
        refused = isinstance(error, VerifierRefused)
        with self._changed:
            self._failure = f"the last try: {error}"
            if refused:  # at the start the user is told in a sentence of its own
                self._refusal = str(error)
        logger.log(
            logging.WARNING if refused else logging.ERROR,
            "%s; trying again in %g s",
            error,
            _RESTART_PAUSE_SECONDS,
            # BrokenWorker is a sentence; OSError: no memory, pids or descriptors for a process.
            exc_info=not isinstance(error, BrokenWorker | OSError),
        )
        self._stopping.wait(_RESTART_PAUSE_SECONDS)
