"""What people see of a command's services: events as lines, the present as a table.

Decides what to say; how it looks is `screen`'s. One line for each service that becomes ready, each
restart, and each wait that lasts.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dapod.cli.fleet import ServiceSpec
from dapod.cli.readiness import Readiness
from dapod.cli.screen import Overview, Part, Screen
from dapod.cli.supervisor import Supervisor

LONG_WAIT_SECONDS = 10.0
"""A service that is not ready for longer is mentioned, and again each time the wait has doubled."""

log = logging.getLogger("dapod.runner")


@dataclass(frozen=True, kw_only=True)
class ServiceView:
    """One service at this moment."""

    name: str
    started: float
    """On the monotonic clock; another value means another process."""
    readiness: Readiness | None
    pause_left: float | None
    """Seconds until a dead service is started again."""
    has_pages: bool = True
    """False for a process without /readyz."""


@dataclass(kw_only=True)
class _Wait:
    """A service that is not ready."""

    since: float
    mention_at: float = LONG_WAIT_SECONDS
    """Seconds of waiting at which it is mentioned next."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """How much of the command's work is done."""

    text: str
    done: int
    total: int


class ServiceProgress:
    """Turns views of the services into lines and tables on a `Screen`."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._ready: dict[str, float] = {}
        self._waits: dict[str, _Wait] = {}

    def say(self, text: str) -> None:
        """One event, on the screen and in the command's log."""
        log.info("%s", text)
        self._screen.line(text)

    def show(self, views: Sequence[ServiceView], bar: Bar, now: float | None = None) -> None:
        """Mentions what is new among the services and shows them all. `now` is for tests."""
        now = time.time() if now is None else now
        for view in views:
            self._mention_ready(view)
        waits = [wait for view in views if (wait := self._long_wait(view, now))]
        if waits:
            self.say("waiting: " + "; ".join(waits))
        parts = [_part(view, now) for view in views]
        self._screen.show(Overview(parts=parts, step=bar.text, done=bar.done, total=bar.total))

    def _mention_ready(self, view: ServiceView) -> None:
        if view.readiness is None or not view.readiness.ready:
            return
        if self._ready.get(view.name) == view.started:
            return
        self._ready[view.name] = view.started
        seconds = time.monotonic() - view.started
        self.say(f"{view.name} is ready after {duration(seconds)}: {view.readiness.activity}")

    def _long_wait(self, view: ServiceView, now: float) -> str | None:
        """Counts from when it was last ready: what it waits for may change meanwhile."""
        answer = view.readiness
        if answer is None or answer.ready:
            self._waits.pop(view.name, None)
            return None
        wait = self._waits.setdefault(view.name, _Wait(since=answer.since_unix))
        waited = now - wait.since
        if waited < wait.mention_at:
            return None
        wait.mention_at = 2 * waited
        return f"{view.name}: {answer.activity} ({duration(waited)})"


def view_of(
    spec: ServiceSpec, supervisor: Supervisor, answers: Mapping[str, Readiness]
) -> ServiceView:
    """How `spec` is now, by its process and its last answer."""
    started = supervisor.started(spec.name)
    pause_left = supervisor.pause_left(spec.name)
    answer = answers.get(spec.name)
    current = answer is not None and pause_left is None and answer.asked > started
    return ServiceView(
        name=spec.name,
        started=started,
        readiness=answer if current else None,
        pause_left=pause_left,
        has_pages=spec.ops_port is not None,
    )


def duration(seconds: float) -> str:
    """Example: `duration(110)` is `1m50s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def _part(view: ServiceView, now: float) -> Part:
    if view.pause_left is not None:
        return Part(name=view.name, state="dead", doing=f"starts again in {view.pause_left:.0f} s")
    if not view.has_pages:
        return Part(name=view.name, state="ready", doing="running")
    answer = view.readiness
    if answer is None:
        return Part(name=view.name, state="waiting", doing="starting")
    return Part(
        name=view.name,
        state="ready" if answer.ready else "waiting",
        doing=answer.activity,
        seconds=duration(max(0.0, now - answer.since_unix)),
    )
