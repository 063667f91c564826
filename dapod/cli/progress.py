"""What people see of a run while it goes on: events and steps as lines, the present as a table.

Decides what to say; how it looks is `screen`'s. One line for each service that becomes ready, each
finished step, each restart, and each wait that lasts.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dapod.cli.evaluations import EvaluationRow
from dapod.cli.readiness import Readiness
from dapod.cli.screen import Overview, Part, Screen
from dapod.cli.steps import StepRow

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


class Progress:
    """Turns views of the services and new steps into lines and tables on a `Screen`."""

    def __init__(self, *, screen: Screen, steps_total: int) -> None:
        self._screen = screen
        self._steps_total = steps_total
        self._ready: dict[str, float] = {}
        self._waits: dict[str, _Wait] = {}

    def say(self, text: str) -> None:
        """One event, on the screen and in runner.log."""
        log.info("%s", text)
        self._screen.line(text)

    def services(
        self, views: Sequence[ServiceView], rows: Sequence[StepRow], now: float | None = None
    ) -> None:
        """Mentions what is new among the services and shows them all. `now` is for tests."""
        now = time.time() if now is None else now
        for view in views:
            self._mention_ready(view)
        waits = [wait for view in views if (wait := self._long_wait(view, now))]
        if waits:
            self.say("waiting: " + "; ".join(waits))
        self._screen.show(
            Overview(
                parts=[_part(view, now) for view in views],
                step=progress_of(rows[-1], rows, self._steps_total) if rows else "",
                done=rows[-1].step + 1 if rows else 0,
                total=self._steps_total,
            )
        )

    def steps(self, new: Sequence[StepRow], rows: Sequence[StepRow]) -> None:
        """Mentions finished steps."""
        for row in new:
            self.say(progress_of(row, [r for r in rows if r.step <= row.step], self._steps_total))

    def evaluations(self, new: Sequence[EvaluationRow]) -> None:
        """Mentions evaluations that have ended."""
        for row in new:
            self.say(evaluation_of(row))

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


def progress_of(row: StepRow, rows: Sequence[StepRow], total: int) -> str:
    """One finished step; `rows` end with it."""
    left = time_left(rows, total)
    return "  ".join(
        [
            f"step {row.step + 1}/{total}",
            f"accuracy {_shown(row.accuracy, '.2f')}",
            f"informative {_shown(row.informative, '.2f')}",
            f"reward {_shown(row.reward_mean, '+.2f')}",
            f"entropy {row.entropy_nats:.2f}",
            f"staleness {row.staleness_mean:.1f}",
            f"tokens/s {row.tokens_per_second:.0f}",
            f"{row.seconds_total:.1f} s",
            *([f"~{duration(left)} left"] if left else []),
        ]
    )


def evaluation_of(row: EvaluationRow) -> str:
    """Example: `evaluation v4: 0.43 (0.38 to 0.48)  avg@4  64 problems  12 s`."""
    if row.dropped_because:
        done = f"{row.problems_done} of {row.problems} problems"
        value = "-" if row.avg is None else f"{row.avg:.2f}"
        return f"evaluation v{row.policy_version}: {value}  {done}: {row.dropped_because}"
    value = "no answer could be judged"
    if row.avg is not None and row.low is not None and row.high is not None:
        value = f"{row.avg:.2f} ({row.low:.2f} to {row.high:.2f})"
    return "  ".join(
        [
            f"evaluation v{row.policy_version}: {value}",
            f"avg@{row.samples}",
            f"{row.problems} problems",
            duration(row.seconds),
        ]
    )


def _shown(value: float, form: str) -> str:
    """A mean over nothing is a dash, not a number."""
    return "-" if math.isnan(value) else format(value, form)


def time_left(rows: Sequence[StepRow], total: int) -> float:
    """Seconds, if the steps to come take as long as the last three did."""
    recent = [row.seconds_total for row in rows[-3:]]
    return (total - rows[-1].step - 1) * sum(recent) / len(recent)


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
