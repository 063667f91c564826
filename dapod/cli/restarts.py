"""How often a service may be restarted: an arithmetic of times, nothing else.

At most `MAX_RESTARTS` in any `WINDOW_SECONDS`; the pause before a restart doubles with each recent
one.
"""

from collections.abc import Callable

MAX_RESTARTS = 5
WINDOW_SECONDS = 600.0
FIRST_PAUSE_SECONDS = 0.5


class RestartBudget:
    """The restarts of one service. Times are given, so a test owns the clock."""

    def __init__(self, *, first_pause_seconds: float = FIRST_PAUSE_SECONDS) -> None:
        self._first_pause_seconds = first_pause_seconds
        self.total = 0
        """Restarts granted so far."""
        self._granted: list[float] = []

    def grant(self, now: float) -> float | None:
        """Seconds to wait before the restart, or None when there were too many."""
        self._granted = [then for then in self._granted if now - then < WINDOW_SECONDS]
        if len(self._granted) >= MAX_RESTARTS:
            return None
        pause: float = self._first_pause_seconds * 2 ** len(self._granted)
        self._granted.append(now)
        self.total += 1
        return pause

    @property
    def refusal(self) -> str:
        """Why there is no other restart, after "it ended"."""
        return f"again after {MAX_RESTARTS} restarts in ten minutes"

    @property
    def recent(self) -> int:
        """Restarts granted within the window, as of the last grant."""
        return len(self._granted)


class OnceReady(RestartBudget):
    """None before `ready` says that the service has ever worked: it would fail the same way."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        super().__init__()
        self._ready = ready

    def grant(self, now: float) -> float | None:
        return super().grant(now) if self._ready() else None

    @property
    def refusal(self) -> str:
        return super().refusal if self._ready() else "before it was ready"
