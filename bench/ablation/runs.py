"""One run of one row: `dapod run` until it has generated its tokens, and the rows it left.

A run is done when its steps.jsonl holds the budget; then only that file is kept. An unfinished one
is begun anew: its directory is a few minutes old at most.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ablation.rows import GROUP_SIZE, Row

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart.toml"
RUN_SECONDS = 3600
STOP_SECONDS = 60
MOST_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one line of steps.jsonl says about what was sampled since the step before."""

    tokens: int
    """Generated since the run began."""
    rollouts: float
    """Sampled in this step."""
    accuracy: float
    truncated: float
    entropy: float
    informative: float
    """Share of the groups sampled."""


def read(file: Path) -> list[Step]:
    """The steps of a run in which something was sampled, oldest first; none where there is no file
    yet."""
    tokens, steps = 0, []
    text = file.read_text() if file.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        row: dict[str, Any] = json.loads(line)
        if not row["tokens_generated"]:
            continue
        tokens += row["tokens_generated"]
        rollouts = row["tokens_generated"] / row["response_tokens_mean"]
        uniform = row["groups_all_correct"] + row["groups_all_wrong"]
        steps.append(
            Step(
                tokens=tokens,
                rollouts=rollouts,
                accuracy=row["accuracy"],
                truncated=row["truncated_ratio"],
                entropy=row["entropy_nats"],
                informative=1 - uniform * GROUP_SIZE / rollouts,
            )
        )
    return steps


def is_done(file: Path, budget: int) -> bool:
    steps = read(file)
    return bool(steps) and steps[-1].tokens >= budget


def train(row: Row, seed: int, budget: int, file: Path) -> None:
    """Runs until `budget` tokens have been generated; writes `file` when they have."""
    scratch = file.with_suffix(".run")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dapod.cli", "run", str(CONFIG), "--run-dir", str(scratch)]
    command += ["--steps", str(MOST_STEPS)]
    # Nobody resumes these runs, and a checkpoint is gigabytes.
    settings = {"run.seed": seed, "trainer.checkpoint_every_steps": MOST_STEPS, **row.settings}
    for key, value in settings.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    with (scratch.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(process, scratch / "steps.jsonl", budget)
    finally:
        _stop(process)
    shutil.copyfile(scratch / "steps.jsonl", file)
    shutil.rmtree(scratch)
    scratch.with_suffix(".log").unlink()


def _wait(process: subprocess.Popen[bytes], steps: Path, budget: int) -> None:
    deadline = time.monotonic() + RUN_SECONDS
    while not is_done(steps, budget):
        if process.poll() is not None:
            raise SystemExit(f"the run ended early; its output is in {steps.parent}.log")
        if time.monotonic() > deadline:
            raise SystemExit(f"the run took more than {RUN_SECONDS} s: {steps.parent}.log")
        time.sleep(1.0)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()  # SIGINT is ignored by what a shell starts in the background
        process.wait(timeout=STOP_SECONDS)
