"""What the platform costs: the quickstart through all services, and through one program.

    python -m bench.overhead [--steps 8] [--rounds 2] [--out bench/results/overhead.json]

Both sides train the same model on the same task with the same sizes and the same kernels; they take
turns on the same machine, platform first in odd rounds, single process first in even ones. Printed:
medians of seconds per step and seconds per 1,000 generated tokens, the ratio platform / single
process, and where each side's time goes. Start-up is not counted on either side, nor is the first
step, whose wait contains it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dapod import config
from services.rollout import settings

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "quickstart.toml"
SIDE_SECONDS = 1800
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Set by `dapod run` for its services; the single process gets the same."""

Rows = list[dict[str, Any]]


def platform(steps: int, seed: int, scratch: Path) -> Rows:
    run_dir = scratch / "run"
    command = [sys.executable, "-m", "dapod.cli", "run", str(CONFIG)]
    options = ["--steps", str(steps), "--run-dir", str(run_dir), "--set", f"run.seed={seed}"]
    subprocess.run([*command, *options], cwd=ROOT, check=True, timeout=SIDE_SECONDS)
    return read(run_dir / "steps.jsonl")


def single_process(steps: int, seed: int, scratch: Path) -> Rows:
    out = scratch / "single.jsonl"
    command = [sys.executable, "-m", "bench.single_process", str(CONFIG)]
    options = ["--steps", str(steps), "--seed", str(seed), "--out", str(out)]
    environment = os.environ | THREADS
    settings.set_environment(environment, config.load(CONFIG), cpu=settings.is_cpu_build())
    subprocess.run(
        [*command, *options], cwd=ROOT, check=True, timeout=SIDE_SECONDS, env=environment
    )
    return read(out)


def read(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run_round(number: int, steps: int) -> dict[str, Rows]:
    sides = {"platform": platform, "single process": single_process}
    order = list(sides) if number % 2 else list(reversed(sides))
    rows: dict[str, Rows] = {}
    for name in order:
        with tempfile.TemporaryDirectory() as scratch:
            print(f"round {number}: {name}", flush=True)
            rows[name] = sides[name](steps, number, Path(scratch))[1:]
    return rows


def summary(rows: Rows) -> dict[str, float]:
    """Means over steps, so that what one step defers to the next is counted."""
    seconds = sum(row["seconds_total"] for row in rows)
    tokens = sum(row["tokens_generated"] for row in rows)
    parts = {
        name: statistics.fmean(row[f"seconds_{name}"] for row in rows)
        for name in ("wait", "train", "publish")
    }
    other = seconds / len(rows) - sum(parts.values())
    return {
        "seconds per step": seconds / len(rows),
        "seconds per 1000 generated tokens": 1000 * seconds / tokens,
        "generated tokens per step": tokens / len(rows),
        **{f"seconds {name}": value for name, value in parts.items()},
        "seconds other": other,
        "accuracy, last 3 steps": statistics.fmean(row["accuracy"] for row in rows[-3:]),
    }


def report(rounds: list[dict[str, Rows]]) -> dict[str, Any]:
    sides = {name: [summary(r[name]) for r in rounds] for name in rounds[0]}
    table = {}
    for measure in sides["platform"][0]:
        ours, single = (
            statistics.median(s[measure] for s in sides[name])
            for name in ("platform", "single process")
        )
        table[measure] = {
            "platform": ours,
            "single process": single,
            # Next to nothing on one side makes no ratio.
            "ratio": ours / single if single > 0.05 else None,
        }
    return {"rounds": len(rounds), "table": table, "per round": sides}


def show(result: dict[str, Any]) -> None:
    print(f"\n{'':36}{'platform':>10}{'single':>10}{'ratio':>8}")
    for measure, row in result["table"].items():
        ratio = "" if row["ratio"] is None else f"{row['ratio']:8.2f}"
        print(f"{measure:36}{row['platform']:10.2f}{row['single process']:10.2f}{ratio}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rounds = [run_round(number, given.steps) for number in range(1, given.rounds + 1)]
    result = report(rounds)
    show(result)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
