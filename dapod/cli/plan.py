"""`dapod plan`: its arguments, and the answer on stdout. The arithmetic is `dapod.plan`.

Exit status 0: it fits; 2: it does not, and one sentence on stderr says what to change.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dapod.cli.plan_text import as_json, as_text
from dapod.config import ConfigError, RunConfig
from dapod.plan import Machines, make_plan
from dapod.plan.assumptions import assumptions_of
from dapod.plan.hardware import GPUS, gpu_named
from dapod.plan.model_shape import find_shape

DESCRIPTION = """\
Says what fits and how long a step takes, before anything is rented: memory of a trainer GPU by
term, key-value cache and concurrent rollouts, Redis, storage, seconds by phase, and how many
engines keep the trainer busy. Computed from the config, never measured (docs/plan.md).
"""
EXAMPLES = """\
examples:
  dapod plan configs/dapo_qwen2.5_7b.toml --gpus-per-node 8 --gpu h100
  dapod plan configs/dapo_qwen2.5_32b.toml --nodes 4 --gpus-per-node 8 --gpu h100
  dapod plan my.toml --gpu a100-80g --model-shape config.json --assume response_tokens=4000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG and --set are the caller's: all commands have them."""
    parser.add_argument("--nodes", type=_count, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--gpus-per-node", type=_count, default=1, metavar="M", help="default: 1", dest="gpus"
    )
    parser.add_argument("--gpu", default="h100", metavar="NAME", help=f"one of {', '.join(GPUS)}")
    parser.add_argument(
        "--model-shape",
        type=Path,
        metavar="FILE",
        help="the model's config.json, when model.path is not there yet",
    )
    parser.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="name=value",
        help="replace an assumption, as often as needed; the answer lists them",
    )
    parser.add_argument("--json", action="store_true", help="numbers for programs")


def plan(chosen: argparse.Namespace, config: RunConfig) -> int:
    """Prints the plan; raises `ConfigError` with what does not fit."""
    machines = Machines(nodes=chosen.nodes, gpus_per_node=chosen.gpus, gpu=gpu_named(chosen.gpu))
    made = make_plan(
        config,
        find_shape(config, chosen.model_shape),
        machines,
        assumptions_of(config, chosen.assume),
    )
    print(json.dumps(as_json(made), indent=2) if chosen.json else as_text(made), end="")
    if chosen.json:
        print()
    if made.refusals:
        raise ConfigError("; ".join(made.refusals))
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)
