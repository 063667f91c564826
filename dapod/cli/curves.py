"""curves.png: four small pictures of how a run went, over its steps."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dapod.cli.evaluations import EvaluationRow
from dapod.cli.steps import StepRow

_PANELS: list[tuple[str, str, Callable[[StepRow], float], bool]] = [
    ("Accuracy", "share of rollouts correct", lambda row: row.accuracy, True),
    ("Informative groups", "share of groups sampled", lambda row: row.informative, True),
    ("Entropy", "nats per token", lambda row: row.entropy_nats, False),
    ("Response length", "mean tokens", lambda row: row.response_tokens_mean, False),
]


def draw_curves(
    rows: Sequence[StepRow], evaluated: Sequence[EvaluationRow], title: str, file: Path
) -> None:
    """Writes the picture; needs no display. Evaluations are points on the accuracy."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(2, 2, sharex=True).flat
    for axes, (name, unit, value, is_share) in zip(panels, _PANELS, strict=True):
        _draw(axes, rows, value)
        axes.set_title(name, fontsize=11, loc="left")
        axes.set_ylabel(unit, fontsize=9)
        if is_share:
            axes.set_ylim(0, 1)
        else:
            known = [value(row) for row in rows if not math.isnan(value(row))]
            axes.set_ylim(0, 1.1 * max(known, default=1.0) or 1.0)
    if evaluated:
        _mark(figure.axes[0], evaluated)
    for axes in figure.axes[2:]:
        axes.set_xlabel("step", fontsize=9)
    figure.savefig(file, dpi=130)


def _mark(axes: Axes, evaluated: Sequence[EvaluationRow]) -> None:
    """A step's row shows the policy before it, so policy v belongs to step v + 1 of the axis."""
    known = [(r, r.avg, r.low, r.high) for r in evaluated]
    points = [
        (row.policy_version + 1, avg, avg - low, high - avg)
        for row, avg, low, high in known
        if avg is not None and low is not None and high is not None
    ]
    if not points:
        return
    steps, values, below, above = zip(*points, strict=True)
    axes.errorbar(
        steps,
        values,
        yerr=(below, above),
        fmt="s",
        markersize=4,
        capsize=2,
        color="#c8553d",
        label=f"evaluation, avg@{evaluated[-1].samples}",
    )
    axes.legend(fontsize=8, frameon=False)


def _draw(axes: Axes, rows: Sequence[StepRow], value: Callable[[StepRow], float]) -> None:
    steps = [row.step + 1 for row in rows]
    axes.plot(steps, [value(row) for row in rows], marker="o", markersize=3, color="#1f6f8b")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
