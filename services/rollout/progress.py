"""Whether the engine goes on: vLLM reports each of its steps to this, as to any of its loggers.

A request may take hours, so it has no deadline of its own; the engine's next step has one. Without
it a wedged engine would keep its leases for ever, for the pod around it lives and renews them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class EngineProgress:
    """A `StatLoggerFactory` of vLLM's, and the one logger it makes.

    Not derived from `StatLoggerBase`, for vLLM is imported late.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> EngineProgress:
        return self

    def idle_seconds(self, since: float) -> float:
        """Without a step, at the longest since a moment of the same clock."""
        return self._clock() - max(self._last, since)

    # What vLLM calls.

    def record(self, *_: Any, **__: Any) -> None:
        self._last = self._clock()

    def log(self) -> None:
        """Nothing is logged here."""

    def log_engine_initialized(self) -> None:
        """Nothing is logged here."""

    def record_sleep_state(self, *_: Any, **__: Any) -> None:
        """Engines do not sleep here."""
