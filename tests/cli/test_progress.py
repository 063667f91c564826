"""What is said during a run, and how."""

import dataclasses
import time
from pathlib import Path

import pytest
from rich.console import Console

from dapod.cli.progress import Progress, progress_of, time_left
from dapod.cli.readiness import Readiness
from dapod.cli.screen import Overview, Part, draw
from dapod.cli.service_progress import ServiceView, duration
from dapod.cli.steps import StepRow, read_steps

RECORDED = Path(__file__).with_name("steps.jsonl")


class Recorder:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.shown: list[Overview] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def show(self, overview: Overview) -> None:
        self.shown.append(overview)

    def close(self) -> None:
        pass


def view(**changes: object) -> ServiceView:
    plain = ServiceView(name="rollout", started=time.monotonic(), readiness=None, pause_left=None)
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def saying(activity: str, *, ready: bool = False, seconds: float = 0.0) -> Readiness:
    return Readiness(
        ready=ready, activity=activity, since_unix=time.time() - seconds, asked=time.monotonic()
    )


def row(**changes: object) -> StepRow:
    return dataclasses.replace(read_steps(RECORDED)[0], **changes)  # type: ignore[arg-type]


def test_a_step_is_one_line() -> None:
    rows = [row(step=s, accuracy=0.34, reward_mean=-0.31, entropy_nats=1.02) for s in range(3)]
    rows = [
        dataclasses.replace(
            r,
            groups_kept=12,
            groups_uniform=12,
            groups_failed=1,
            tokens_generated=4120,
            seconds_total=10.0,
            staleness_mean=0.5,
        )
        for r in rows
    ]
    assert progress_of(rows[-1], rows, 12) == (
        "step 3/12  accuracy 0.34  informative 0.48  reward -0.31  entropy 1.02  staleness 0.5  "
        "tokens/s 412  10.0 s  ~1m30s left"
    )


def test_a_step_that_is_trained_again_after_a_crash_says_so() -> None:
    """And no tokens a second: they were sampled the first time."""
    screen = Recorder()
    progress = Progress(screen=screen, steps_total=4)
    rows = [row(step=0), row(step=1)]
    progress.steps(rows, rows)
    progress.steps([row(step=1), row(step=2)], [*rows, row(step=2)])
    first, second, repeated, third = screen.lines
    assert repeated.startswith("step 2/4 again  accuracy") and "tokens/s" not in repeated
    assert all("again" not in line and "tokens/s" in line for line in (first, second, third))


def test_a_step_that_sampled_nothing_shows_dashes() -> None:
    nothing = float("nan")
    one = row(accuracy=nothing, reward_mean=nothing, groups_kept=0, groups_uniform=0)
    said = progress_of(one, [one], 3)
    assert "accuracy -  informative -  reward -  entropy" in said


def test_the_first_step_tells_nothing_of_the_time_left() -> None:
    """It waited for the engine to start."""
    rows = [row(step=0, seconds_total=100.0), row(step=1, seconds_total=10.0)]
    assert "left" not in progress_of(rows[0], rows[:1], 6)
    assert time_left(rows, 6) == 40.0


def test_the_last_step_leaves_no_time() -> None:
    assert "left" not in progress_of(row(step=11), [row(step=11)], 12)


def test_time_left_goes_by_the_last_three_steps() -> None:
    rows = [row(step=s, seconds_total=t) for s, t in enumerate([100.0, 10.0, 10.0, 10.0])]
    assert time_left(rows, 6) == 20.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1m00s"), (110, "1m50s"), (3725, "1h02m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_service_is_called_ready_once_for_each_process() -> None:
    screen = Recorder()
    progress = Progress(screen=screen, steps_total=4)
    ready = saying("sampling", ready=True)
    first, second = view(readiness=ready), view(readiness=ready, started=time.monotonic() - 5)
    for seen in (first, first, second):
        progress.services([seen], [])
    assert screen.lines == [
        "rollout is ready after 0 s: sampling",
        "rollout is ready after 5 s: sampling",
    ]


def test_long_waits_are_mentioned_with_their_reason_and_not_too_often() -> None:
    screen = Recorder()
    progress = Progress(screen=screen, steps_total=4)
    began = time.time() - 100
    for seconds, activity in ((0, "a"), (9, "a"), (12, "a"), (15, "b"), (23, "b"), (30, "c")):
        since = began if activity == "a" else began + seconds  # another reason, the same wait
        waits = Readiness(ready=False, activity=activity, since_unix=since, asked=0.0)
        progress.services([view(readiness=waits)], [], now=began + seconds)
    assert screen.lines == ["waiting: rollout: a (12 s)", "waiting: rollout: c (30 s)"]
    progress.services([view(readiness=saying("sampling", ready=True))], [])
    progress.services([view(readiness=saying("loading", seconds=11))], [])
    assert screen.lines[-1] == "waiting: rollout: loading (11 s)"


def test_the_table_shows_every_part_and_the_last_step() -> None:
    overview = Overview(
        parts=[
            Part(name="buffer", state="ready", doing="serving", seconds="12 s"),
            Part(name="trainer", state="dead", doing="starts again in 2 s"),
        ],
        step="step 3/12  accuracy 0.34",
        done=3,
        total=12,
    )
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(draw(overview))
    console.file.close()
    text = console.export_text()
    assert "● buffer" in text and "serving" in text
    assert "× trainer" in text and "starts again in 2 s" in text
    assert "step 3/12  accuracy 0.34" in text
