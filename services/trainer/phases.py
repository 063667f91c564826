"""Where a step's time goes: seconds per phase, in the metrics as they pass and in the step's row at
its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from services.trainer.metrics import TrainerMetrics


class Phases:
    """Example: `with phases("wait"): ...`, then `phases.seconds("wait")`."""

    def __init__(self, metrics: TrainerMetrics) -> None:
        self._metrics = metrics
        self._spent: dict[str, float] = {}
        self._began = time.monotonic()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self._spent[phase] = self._spent.get(phase, 0.0) + seconds
            self._metrics.phase_seconds.labels(phase).inc(seconds)
            self._metrics.last_progress.set_to_current_time()

    def seconds(self, *phases: str) -> float:
        """Time spent in these phases since the last `restart`."""
        return sum(self._spent.get(phase, 0.0) for phase in phases)

    @property
    def total(self) -> float:
        """Time since the last `restart`, whatever it was spent on."""
        return time.monotonic() - self._began

    def restart(self) -> None:
        """A new step begins."""
        self._spent, self._began = {}, time.monotonic()
