"""What the runs came to: one line for each row of the table, and a picture of all of them.

A number is the mean over seeds, with the lowest and the highest of them behind it. "At the budget"
means over everything sampled between 80 % and 100 % of the tokens, weighted by rollouts: a single
step is too few.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.ablation.rows import Row
from bench.ablation.runs import Step

LAST_SHARE = 0.2
Floats = npt.NDArray[np.float64]
Runs = Sequence[Sequence[Step]]
"""Of one row, a seed each."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One column: a number of one run within its budget."""

    title: str
    of: Callable[[Sequence[Step], int], float]
    form: str = "{:.2f}"


def at_the_budget(value: Callable[[Step], float]) -> Callable[[Sequence[Step], int], float]:
    def measure(steps: Sequence[Step], budget: int) -> float:
        # The step that crosses the line counts where its tokens were generated: before it.
        last = [s for s in steps if s.tokens > (1 - LAST_SHARE) * budget]
        return _mean(last, value)

    return measure


def _mean(steps: Sequence[Step], value: Callable[[Step], float]) -> float:
    weight = sum(s.rollouts for s in steps)
    return sum(value(s) * s.rollouts for s in steps) / weight


def until_the_budget(steps: Sequence[Step], budget: int) -> list[Step]:
    """The steps that began before the budget was spent."""
    within: list[Step] = []
    for step in steps:
        if within and within[-1].tokens >= budget:
            break
        within.append(step)
    return within


MEASURES = (
    Measure(title="accuracy at the budget", of=at_the_budget(lambda s: s.accuracy)),
    Measure(title="mean accuracy", of=lambda steps, _: _mean(steps, lambda s: s.accuracy)),
    Measure(title="truncated", of=at_the_budget(lambda s: s.truncated)),
    Measure(title="informative", of=at_the_budget(lambda s: s.informative)),
    Measure(title="entropy, nats", of=at_the_budget(lambda s: s.entropy)),
    Measure(title="steps", of=lambda steps, _: float(len(steps)), form="{:.0f}"),
)


def table(rows: Sequence[Row], runs: dict[str, Runs], budget: int, seeds: int) -> str:
    """Markdown; a row with fewer than `seeds` runs is marked partial."""
    titles = ["", "seeds", *(m.title for m in MEASURES), "the paper's AIME"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        done = [until_the_budget(steps, budget) for steps in runs[row.key]]
        count = f"{len(done)}" if len(done) >= seeds else f"{len(done)} of {seeds}, partial"
        cells = [_cell([m.of(steps, budget) for steps in done], m.form) for m in MEASURES]
        lines.append("| " + " | ".join([row.title, count, *cells, f"{row.paper} %"]) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float], form: str) -> str:
    if not values:
        return "not run"
    mean = form.format(statistics.fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({form.format(min(values))}–{form.format(max(values))})"


def draw(rows: Sequence[Row], runs: dict[str, Runs], budget: int, file: Path) -> None:
    """Accuracy over generated tokens: the mean of the seeds, and their range as a band."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    grid = np.linspace(0.02, 1.0, 50) * budget
    for number, row in enumerate(rows):
        if not runs[row.key]:
            continue
        curves = np.array([_curve(steps, grid) for steps in runs[row.key]])
        axes.plot(
            grid, curves.mean(axis=0), color=f"C{number}", label=f"{row.title}, n={len(curves)}"
        )
        low, high = curves.min(axis=0), curves.max(axis=0)
        axes.fill_between(grid, low, high, color=f"C{number}", alpha=0.12)
    axes.set_xlabel("generated tokens")
    axes.set_ylabel("accuracy over everything sampled")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    figure.savefig(file, dpi=130)


def _curve(steps: Sequence[Step], grid: Floats) -> Floats:
    """Accuracy at each point of the grid; a step's stands in the middle of its tokens."""
    ends = [0, *(s.tokens for s in steps)]
    middles = [(a + b) / 2 for a, b in pairwise(ends)]
    curve: Floats = np.interp(grid, middles, [s.accuracy for s in steps])
    return curve
