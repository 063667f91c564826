"""The last lines of an evaluation, and summary.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dapod.cli.evaluate.output import Output
from dapod.cli.evaluate.tally import Tally
from dapod.cli.service_progress import duration
from dapod.dataset import Counts


def write_summary(output: Output, about: Mapping[str, Any], tally: Tally) -> None:
    """summary.json: what was evaluated, and everything that was counted."""
    body = {**about, **tally.summary()}
    output.summary_file.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def lines(output: Output, tally: Tally, rows: Counts) -> list[str]:
    """The metrics, what they stand on, and where it lies."""
    return [
        *_table(tally),
        "",
        *_counts(tally),
        *_not_judged(tally),
        *_not_asked(rows),
        *_files(output),
    ]


def _table(tally: Tally) -> list[str]:
    metrics = tally.metrics
    if not metrics:
        return ["NOTHING WAS JUDGED: there is no result"]
    width = max(map(len, metrics))
    rows = [
        f"{name.ljust(width)}  {found.value:.4f}  "
        f"[{found.interval.low:.4f}, {found.interval.high:.4f}]"
        for name, found in metrics.items()
    ]
    judged = len(tally.records) - len(tally.unjudged_problems)
    return [*rows, f"intervals: 95 % confidence, over {judged} problems"]


def _counts(tally: Tally) -> list[str]:
    outcomes = ", ".join(f"{count} {name}" for name, count in tally.outcomes.items())
    return [
        f"{tally.answers} answers: {outcomes}",
        f"{tally.truncated} of them cut at the limit, {tally.tokens / tally.answers:.1f} tokens "
        f"on average; {tally.tokens_per_second:.0f} tokens/s in {duration(tally.seconds)} of "
        f"sampling",
    ]


def _not_judged(tally: Tally) -> list[str]:
    """A verifier's failure is said, never a quiet wrong answer."""
    said = []
    if tally.judged < tally.answers:
        said.append(
            f"NOT JUDGED: {tally.answers - tally.judged} answers (timeout, killed or error). They "
            f"count neither as right nor as wrong: their problems' n is smaller."
        )
    if tally.short_problems:
        said.append(f"problems with such answers: {_numbers(tally.short_problems)}")
    if tally.unjudged_problems:
        said.append(
            f"problems without a judged answer, in no metric: {_numbers(tally.unjudged_problems)}"
        )
    return said


def _not_asked(rows: Counts) -> list[str]:
    """A result without the longest problems is not the data set's."""
    if not rows.filtered:
        return []
    return [
        f"NOT ASKED: {rows.filtered} of {rows.filtered + rows.kept} problems, too long for the "
        f'model\'s context (data.long_prompts = "filter")'
    ]


def _numbers(problems: list[int], most: int = 20) -> str:
    shown = ", ".join(map(str, problems[:most]))
    return f"{len(problems)} ({shown}{', …' if len(problems) > most else ''})"


def _files(output: Output) -> list[str]:
    files = [output.summary_file, output.problems_file, output.responses_file]
    return [f"files: {output.path}", *(f"  {file.name}" for file in files if file.exists())]
