"""Where progress is shown: plain lines, or on a terminal a table that stays below them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_MARKS = {"ready": ("●", "green"), "waiting": ("○", "yellow"), "dead": ("×", "red")}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of the table."""

    name: str
    state: Literal["ready", "waiting", "dead"]
    doing: str
    seconds: str = ""
    """For how long."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The present of a run."""

    parts: Sequence[Part]
    step: str
    """The last finished step in words; empty before the first."""
    done: int
    total: int


class Screen(Protocol):
    """What `Progress` draws on."""

    def line(self, text: str) -> None:
        """Something that happened; stays."""

    def show(self, overview: Overview) -> None:
        """How things are now; replaces what was shown before."""

    def close(self) -> None:
        """Leaves only the lines."""


class PlainScreen:
    """Lines, for logs and pipes."""

    def line(self, text: str) -> None:
        print(text, flush=True)

    def show(self, overview: Overview) -> None:
        """A log has no present."""

    def close(self) -> None:
        pass


class LiveScreen:
    """A terminal: lines scroll up, the table is redrawn below."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def line(self, text: str) -> None:
        self._console.print(Text(text), highlight=False)

    def show(self, overview: Overview) -> None:
        self._live.update(draw(overview), refresh=True)

    def close(self) -> None:
        self._live.stop()


def for_stdout() -> Screen:
    """The screen that fits where the output goes."""
    return LiveScreen(Console()) if sys.stdout.isatty() else PlainScreen()


def draw(overview: Overview) -> Group:
    """The table of the parts above the bar of the steps."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(justify="right", style="dim", no_wrap=True)
    for part in overview.parts:
        mark, colour = _MARKS[part.state]
        name = Text.assemble((f"{mark} ", colour), part.name)
        table.add_row(name, Text(part.doing), part.seconds)
    bar = ProgressBar(total=overview.total, completed=overview.done, width=40)
    steps = Text(overview.step or f"step 0/{overview.total}", style="bold")
    rows = Table.grid()
    rows.add_row(bar)
    rows.add_row(steps)
    return Group(Text(), table, rows)
