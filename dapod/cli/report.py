"""The last lines of a run: what was learned, where it lies, what to try next."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dapod.cli.answers import Answer
from dapod.cli.service_progress import duration
from dapod.cli.summary import Summary

_COLUMN = 36


def learned(summary: Summary) -> list[str]:
    """Accuracy before and after, and what it took."""
    lines = [
        f"trained {summary.steps} of {summary.steps_wanted} steps; "
        f"this start took {duration(summary.seconds)} in all"
    ]
    if summary.steps < summary.steps_wanted:
        lines.append(f"it ended early: {summary.end_reason or 'no reason was given'}")
    if summary.accuracy_first is not None and summary.accuracy_last is not None:
        lines.append(
            f"accuracy {summary.accuracy_first:.2f} in the first step, "
            f"{summary.accuracy_last:.2f} over the last {min(3, summary.steps)}"
        )
    restarts = ", ".join(f"{name} {n}" for name, n in summary.restarts.items() if n)
    if restarts:
        lines.append(f"restarts: {restarts}")
    return lines


def unsound(summary: Summary) -> list[str]:
    """What is wrong with the run itself, loudly; empty when every group is accounted for."""
    if summary.conservation_error is None:
        return [
            "THE BUFFER DID NOT SAY HOW THE RUN ENDED: whether every group was trained once "
            "is not known"
        ]
    if summary.conservation_error:
        return [
            f"CONSERVATION ERROR {summary.conservation_error}: groups were lost or doubled. "
            f"Do not trust this run; please report it with its logs."
        ]
    if not summary.steps:
        return ["NOTHING WAS TRAINED"]
    return []


def answers_table(answers: Sequence[Answer]) -> list[str]:
    """Aligned: the question, its key, and what both policies say."""
    head = ("question", "answer", "first policy", "last policy")
    rows = [(a.question, a.key, a.first, a.last) for a in answers]
    cells = [head, *(tuple(_short(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in cells
    ]


def files(run_dir: Path, summary: Summary) -> list[str]:
    """Where everything is."""
    shown = _from_here(run_dir)
    found = [
        (shown / "steps.jsonl", "one line a step"),
        (shown / "summary.json", "this run in numbers"),
        (shown / "curves.png", "accuracy, informative share, entropy, length"),
        (shown / "logs", "one log a service"),
    ]
    if (run_dir / "evaluations.jsonl").is_file():
        found.insert(1, (shown / "evaluations.jsonl", "one line an evaluated policy"))
    if summary.policy:
        policy = shown / Path(summary.policy).relative_to(run_dir)
        found.insert(0, (policy, "the newest policy; loads in transformers and vLLM"))
    width = max(len(str(path)) for path, _ in found)
    return [f"{str(path).ljust(width)}  {what}" for path, what in found]


def next_commands(config_file: Path, run_dir: Path, steps: int) -> list[str]:
    """Three things to try."""
    run = f"{command()} run {_from_here(config_file.resolve())}"
    return [
        f"{resume_command(run_dir)} --steps {2 * steps}",
        f"{run} --rollouts 2",
        f"{run} --set algorithm.group_size=16 --set run.seed=1",
    ]


def resume_command(run_dir: Path) -> str:
    """Goes on with a run that was stopped, under its own config: `--set` stands in there."""
    shown = _from_here(run_dir)
    return f"{command()} run {shown / 'config.toml'} --run-dir {shown} --resume"


def command() -> str:
    """The command as this person can type it: the environment may not be on their PATH."""
    called = Path(sys.argv[0])
    if shutil.which("dapod"):
        return "dapod"
    return str(_from_here(called.absolute())) if called.name == "dapod" else "python -m dapod.cli"


def _from_here(path: Path) -> Path:
    """Relative where that is shorter to read."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _short(text: str) -> str:
    one_line = " ".join(text.split()) or "(nothing)"
    return one_line if len(one_line) <= _COLUMN else one_line[: _COLUMN - 1] + "…"
