"""What a service says of itself: ready or not, and why, and whether its loop goes on. /readyz,
/healthz and the progress show it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from dapod.heartbeat import Heartbeat


@dataclass(frozen=True, kw_only=True)
class HealthState:
    """One moment of a service."""

    ready: bool
    activity: str
    """What it does, or what it waits for."""
    since_unix: float


class Health:
    """The current `HealthState`; any thread may set or read it."""

    def __init__(self, heartbeat: Heartbeat | None = None) -> None:
        self.heartbeat = heartbeat or Heartbeat()
        """Of the service's loop, if it has one that beats."""
        self._lock = threading.Lock()
        self._state = HealthState(ready=False, activity="starting", since_unix=time.time())

    @property
    def state(self) -> HealthState:
        with self._lock:
            return self._state

    def doing(self, activity: str) -> None:
        """Ready, and busy with `activity`."""
        self._set(ready=True, activity=activity)

    def waiting(self, reason: str) -> None:
        """Not ready, because of `reason`."""
        self._set(ready=False, activity=reason)

    def _set(self, *, ready: bool, activity: str) -> None:
        with self._lock:
            same = self._state.ready == ready and self._state.activity == activity
            if not same:
                self._state = HealthState(ready=ready, activity=activity, since_unix=time.time())
