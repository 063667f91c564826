"""What people see of a run while it goes on: its services, and each finished step as a line."""

import math
from collections.abc import Sequence

from dapod.cli.evaluations import EvaluationRow
from dapod.cli.screen import Screen
from dapod.cli.service_progress import Bar, ServiceProgress, ServiceView, duration
from dapod.cli.steps import StepRow


class Progress(ServiceProgress):
    """Turns views of the services and new steps into lines and tables on a `Screen`."""

    def __init__(self, *, screen: Screen, steps_total: int) -> None:
        super().__init__(screen)
        self._steps_total = steps_total
        self._last_step = -1

    def services(
        self, views: Sequence[ServiceView], rows: Sequence[StepRow], now: float | None = None
    ) -> None:
        """Mentions what is new among the services and shows them all. `now` is for tests."""
        text = progress_of(rows[-1], rows, self._steps_total) if rows else ""
        done = rows[-1].step + 1 if rows else 0
        self.show(views, Bar(text=text, done=done, total=self._steps_total), now)

    def steps(self, new: Sequence[StepRow], rows: Sequence[StepRow]) -> None:
        """Mentions finished steps; after a crash those since the checkpoint are there again."""
        for row in new:
            until = [r for r in rows if r.step <= row.step]
            again = row.step <= self._last_step
            self.say(progress_of(row, until, self._steps_total, again=again))
            self._last_step = max(self._last_step, row.step)

    def evaluations(self, new: Sequence[EvaluationRow]) -> None:
        """Mentions evaluations that have ended."""
        for row in new:
            self.say(evaluation_of(row))


def progress_of(row: StepRow, rows: Sequence[StepRow], total: int, *, again: bool = False) -> str:
    """One finished step; `rows` end with it. For one that is trained again nothing was sampled."""
    left = time_left(rows, total)
    return "  ".join(
        [
            f"step {row.step + 1}/{total}{' again' if again else ''}",
            f"accuracy {_shown(row.accuracy, '.2f')}",
            f"informative {_shown(row.informative, '.2f')}",
            f"reward {_shown(row.reward_mean, '+.2f')}",
            f"entropy {row.entropy_nats:.2f}",
            f"staleness {row.staleness_mean:.1f}",
            *([] if again else [f"tokens/s {row.tokens_per_second:.0f}"]),
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
    """Seconds, if the steps to come take as long as the last three did; 0 while nobody knows.

    The first step says nothing: it waited for the engine to start.
    """
    recent = [row.seconds_total for row in rows[1:][-3:]]
    return (total - rows[-1].step - 1) * sum(recent) / len(recent) if recent else 0.0
