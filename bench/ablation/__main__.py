"""The paper's table 1, small: every row with several seeds, at equal numbers of generated tokens.

    python -m bench.ablation [--tokens 16000] [--seeds 3] [--dir runs/ablation] [--report]

Takes hours on two cores. What is done stays done: stop it and start it again at any time. Seeds are
the outer loop, so that an unfinished table has whole seeds first. `--report` runs nothing and shows
what there is, partial rows labelled as partial.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bench.ablation.report import Runs, draw, table
from bench.ablation.rows import ROWS
from bench.ablation.runs import is_done, read, train


def file_of(directory: Path, key: str, seed: int) -> Path:
    return directory / f"{key}-seed{seed}.jsonl"


def finished(directory: Path, budget: int, seeds: int) -> dict[str, Runs]:
    """The runs of each row that have spent the budget."""
    files = {row.key: [file_of(directory, row.key, s) for s in range(seeds)] for row in ROWS}
    return {key: [read(f) for f in of if is_done(f, budget)] for key, of in files.items()}


def run_all(directory: Path, budget: int, seeds: int) -> None:
    wanted = [(row, seed) for seed in range(seeds) for row in ROWS]
    left = [(r, s) for r, s in wanted if not is_done(file_of(directory, r.key, s), budget)]
    print(f"{len(wanted) - len(left)} of {len(wanted)} runs are done", flush=True)
    for number, (row, seed) in enumerate(left, start=1):
        began = time.monotonic()
        print(f"run {number} of {len(left)}: {row.title}, seed {seed}", end=" ", flush=True)
        train(row, seed, budget, file_of(directory, row.key, seed))
        print(f"({time.monotonic() - began:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=16_000, help="generated in each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--report", action="store_true", help="run nothing")
    given = parser.parse_args()
    given.dir.mkdir(parents=True, exist_ok=True)
    if not given.report:
        run_all(given.dir, given.tokens, given.seeds)
    runs = finished(given.dir, given.tokens, given.seeds)
    print("\n" + table(ROWS, runs, given.tokens, given.seeds))
    draw(ROWS, runs, given.tokens, given.dir / "ablation.png")
    print(f"\ndrawn in {given.dir / 'ablation.png'}")


if __name__ == "__main__":
    main()
