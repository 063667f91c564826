"""Draws a dashboard's panels from a live Prometheus, where there is no Grafana to look at.

    python -m bench.dashboard --prometheus http://127.0.0.1:9090 --minutes 5 --out dashboard.png

It is a picture for the docs, not Grafana: legends, units and stacking are read, colours are not.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

RUN = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards" / "dapod-run.json"
CHOSEN = {"$namespace": ".*", "$instance": ".*", "$__rate_interval": "40s"}
"""Everything; the interval is four scrapes of ten seconds."""
COLUMNS = 6
Series = tuple[dict[str, str], list[float], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--until", type=float, default=None, help="Unix time; now if not given")
    parser.add_argument("--dashboard", type=Path, default=RUN)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    end = given.until or time.time()
    draw(given.dashboard, Source(given.prometheus, end - 60 * given.minutes, end), given.out)


class Source:
    """Prometheus over a span of time."""

    def __init__(self, url: str, start: float, end: float) -> None:
        self._url, self._start, self._end = url, start, end

    def series(self, query: str) -> list[Series]:
        """Labels, minutes since the start, values."""
        for name, value in CHOSEN.items():
            query = query.replace(name, value)
        step = max(1.0, (self._end - self._start) / 300)
        asked = {"query": query, "start": self._start, "end": self._end, "step": step}
        url = f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found = json.load(answer)["data"]["result"]
        return [
            (
                one["metric"],
                [(at - self._start) / 60 for at, _ in one["values"]],
                [float(value) for _, value in one["values"]],
            )
            for one in found
        ]


def draw(dashboard: Path, source: Source, out: Path) -> None:
    """All panels in reading order; each row of the dashboard starts a new line."""
    lines = _lines(json.loads(dashboard.read_text())["panels"])
    figure, axes = pyplot.subplots(
        len(lines), COLUMNS, figsize=(4 * COLUMNS, 2.6 * len(lines)), squeeze=False
    )
    for (heading, panels), line in zip(lines, axes, strict=True):
        for axis in line[len(panels) :]:
            axis.set_visible(False)
        for panel, axis in zip(panels, line, strict=False):
            _panel(panel, source, axis)
        line[0].annotate(
            heading, (0, 1.28), xycoords="axes fraction", fontsize=14, fontweight="bold"
        )
    figure.tight_layout(h_pad=2.0)
    figure.savefig(out, dpi=60)


def _lines(panels: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    lines: list[tuple[str, list[dict[str, Any]]]] = []
    for panel in panels:
        if panel["type"] == "row":
            lines.append((panel["title"], []))
        elif len(lines[-1][1]) == COLUMNS:
            lines.append(("", [panel]))
        else:
            lines[-1][1].append(panel)
    return lines


def _panel(panel: dict[str, Any], source: Source, axis: Axes) -> None:
    settings = panel["fieldConfig"]["defaults"]
    found = [
        (_legend(target["legendFormat"], labels), minutes, values)
        for target in panel["targets"]
        for labels, minutes, values in source.series(target["expr"])
    ]
    stacked = "stacking" in settings.get("custom", {}) and len({len(m) for _, m, _ in found}) == 1
    if stacked:
        names, minutes, values = zip(*found, strict=True)
        axis.stackplot(minutes[0], values, labels=names, alpha=0.7)
    else:
        for name, at, values in found:
            axis.plot(at, values, label=name, linewidth=1.2)
    axis.set_title(textwrap.shorten(panel["title"], 40), fontsize=11, loc="left")
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.yaxis.set_major_formatter(_unit(settings["unit"]))
    axis.tick_params(labelsize=8)
    if settings.get("min") == 0:
        axis.set_ylim(bottom=0)
    if 1 < len(found) < 12:
        axis.legend(fontsize=7, loc="upper left", framealpha=0.6)


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)


def _unit(unit: str) -> FuncFormatter | PercentFormatter:
    if unit == "percentunit":
        return PercentFormatter(1, decimals=None)
    if unit == "bytes":
        return FuncFormatter(lambda value, _: f"{value / 2**20:.0f} MiB")
    suffix = {"s": " s", "cps": " /s"}.get(unit, "")
    return FuncFormatter(lambda value, _: f"{value:g}{suffix}")


if __name__ == "__main__":
    main()
