"""The command line of `dapod evaluate`. Light: `--help` of any command reads it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dapod.cli.evaluate.request import Flags

DESCRIPTION = """\
Samples K answers to each problem of a data set, has them judged, and says avg@K, pass@k and maj@K
with 95 % intervals over problems. Starts what it needs on this machine (an engine and verifiers)
and stops it at the end, on Ctrl-C and on failure.

The same command goes on where it was stopped or killed: problems in problems.jsonl are not sampled
again. Another model, data set or setting in the same output directory is refused.
"""
EXAMPLES = """\
examples:
  dapod evaluate configs/eval_aime2024.toml --model runs/dapo     the newest policy of a run
  dapod evaluate --model runs/quickstart --samples 8              on the run's own data set
  dapod evaluate --model models/smollm2-135m-instruct --data rows.jsonl --verifier integer \\
      --max-response-tokens 16 --set data.prompt_column=question --samples 8 --pass-at 1,4,8
"""
SETTINGS = {
    "samples": ("evaluation.samples", "K", "answers to each problem (default: 32)"),
    "verifier": ("data.verifier", "NAME", "who judges (docs/verifiers.md)"),
    "temperature": ("sampling.temperature", "T", "0 is greedy (default: 1.0)"),
    "top-p": ("sampling.top_p", "P", "above 0, at most 1 (default: 0.7)"),
    "max-response-tokens": ("sampling.max_response_tokens", "N", "responses are cut there"),
    "seed": ("evaluation.seed", "N", "of the engine's random numbers (default: 0)"),
}
"""Flags that stand for one setting."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        type=Path,
        nargs="?",
        metavar="CONFIG",
        help="a TOML file such as configs/eval_aime2024.toml; flags win over it. Without one, a "
        "run directory brings its data set, verifier, lengths and engine",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR|RUN",
        help="a model in the Hugging Face layout, or a run directory: its newest policy",
    )
    parser.add_argument("--data", metavar="FILE", help="the problems (data.path)")
    for name, (key, metavar, text) in SETTINGS.items():
        parser.add_argument(f"--{name}", metavar=metavar, dest=key, help=text)
    parser.add_argument(
        "--pass-at", metavar="K,K,…", help="each k of pass@k, at most --samples (default: K alone)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="output directory (default: evaluations/<model>-<name>, for a run's policy in the "
        "run directory)",
    )
    parser.set_defaults(command=_evaluate)


def flags(chosen: argparse.Namespace) -> Flags:
    """The parsed command line; `overrides` are its --set."""
    from dapod.cli.evaluate.request import Flags

    given = vars(chosen)
    settings = {key: given[key] for key, _, _ in SETTINGS.values() if given[key] is not None}
    if chosen.pass_at is not None:
        settings["evaluation.pass_at"] = f"[{chosen.pass_at}]"
    return Flags(
        config=chosen.config,
        model=chosen.model,
        data=chosen.data,
        out=chosen.out,
        settings=settings,
        overrides=chosen.overrides,
    )


def _evaluate(chosen: argparse.Namespace) -> int:
    # Imported late: --help and a wrong argument need none of it.
    from dapod.cli.evaluate.command import evaluate

    return evaluate(flags(chosen), sys.argv[2:])
