"""A loop's own word that it goes on, for /healthz: each beat promises when the next one comes.

A promise that is broken is a loop that is stuck, whatever it does or waits for. A service that
never beats has promised nothing and is alive as long as its process answers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Heartbeat:
    """Example: `heartbeat.beat(within=900)`, then `heartbeat.overdue_seconds == 0` for 15 minutes.

    One thread beats, any may read.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = math.inf

    def beat(self, *, within: float) -> None:
        """The loop goes on; its next beat comes within so many seconds."""
        self._due = self._clock() + within

    @property
    def overdue_seconds(self) -> float:
        """How long the promised beat has been missing; 0 while it is not."""
        return max(0.0, self._clock() - self._due)
