"""Where a step's time goes: seconds per phase, in the metrics as they pass and in the step's row at
its end. And the loop's heartbeat, which beats with every phase.

What stands between two beats, whoever makes them, takes less than `BEAT_SECONDS`: a micro-batch, an
optimiser's update, an attempt to reach the buffer (`services.trainer.source`). Three phases may
take longer in one piece, and say so: `longer` gives them the time on top. The ranks meet at every
micro-batch, so one that hangs stops the beats of all, and any rank's heartbeat is that of all. The
first beat is the first publish: how long a model takes to load, nobody can promise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dapod.heartbeat import Heartbeat
from services.trainer.checkpoint import MODELS_PER_CHECKPOINT
from services.trainer.metrics import TrainerMetrics

BEAT_SECONDS = 900.0
"""Longer than a call to the buffer is repeated before it is given up (600 s and one attempt): ranks
that have fetched their groups wait that long for one that has not. Shorter than the ranks' own
timeout, which ends a collective after 30 minutes."""
SLOW_BYTES_PER_SECOND = 100e6
"""Storage that is slower than a single disk is taken for one that hangs."""


def longer(model_bytes: int, *, follows: float) -> dict[str, float]:
    """Seconds that a phase may take in one piece beyond `BEAT_SECONDS`.

    A policy is written and read back for its checksums. A rank that follows waits for rank 0's word
    for up to `follows` seconds, after which the collective itself fails; 0 for rank 0.
    """
    return {
        "wait": follows,
        "publish": 2 * model_bytes / SLOW_BYTES_PER_SECOND,
        "checkpoint": MODELS_PER_CHECKPOINT * model_bytes / SLOW_BYTES_PER_SECOND,
    }


class Phases:
    """Example: `with phases("wait"): ...`, then `phases.seconds("wait")`."""

    def __init__(
        self, metrics: TrainerMetrics, heartbeat: Heartbeat, longer: Mapping[str, float]
    ) -> None:
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._longer = longer
        self._spent: dict[str, float] = {}
        self._began = time.monotonic()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        self._heartbeat.beat(within=BEAT_SECONDS + self._longer.get(phase, 0.0))
        try:
            yield
        finally:
            self.beat()
            seconds = time.monotonic() - began
            self._spent[phase] = self._spent.get(phase, 0.0) + seconds
            self._metrics.phase_seconds.labels(phase).inc(seconds)
            self._metrics.last_progress.set_to_current_time()

    def beat(self) -> None:
        """In the middle of a phase: it goes on."""
        self._heartbeat.beat(within=BEAT_SECONDS)

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
