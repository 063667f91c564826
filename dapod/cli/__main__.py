"""The command line: `dapod run`, `dapod evaluate`, `dapod plan`, `dapod config check|show`, …

Exit status 0: done; 1: the run failed; 2: something the user must change, in one sentence on
stderr; 128 + n: stopped by signal n.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from dapod import config as configuration
from dapod.cli import plan
from dapod.cli.evaluate import arguments as arguments_of_evaluate
from dapod.config import ConfigError, RunConfig

_RUN_HELP = """\
Starts everything a run needs on this machine (an embedded Valkey, buffer, reward, rollouts,
trainer), shows progress, restarts what dies and stops everything at the end, on Ctrl-C and on
failure.

What it leaves is in the run directory: runs/<name of the config>, or with a number after it when
that is taken: steps.jsonl, summary.json, curves.png, logs/, policies/, checkpoints/.
"""
_RUN_EXAMPLES = """\
examples:
  dapod run configs/quickstart.toml
  dapod run configs/quickstart.toml --steps 20 --resume          go on with the newest run of it
  dapod run configs/quickstart.toml --rollouts 2 --set optimiser.learning_rate=2e-5
  DAPOD_OPS_PORT=9100 dapod run configs/quickstart.toml          /metrics from port 9100 on
"""


class Parser(argparse.ArgumentParser):
    """One sentence and exit status 2, as for every other mistake."""

    def error(self, message: str) -> NoReturn:
        print(f"dapod: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["verify"]:
        _verify(given[1:])
    chosen = _parser().parse_args(given)
    command: Callable[[argparse.Namespace], int] = chosen.command
    try:
        return command(chosen)
    except ConfigError as error:
        print(f"dapod: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # before or after the services ran; while they do, the runner catches it
    except BrokenPipeError:
        # Nobody reads the output any more; python would complain about that again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> Parser:
    parser = Parser(
        prog="dapod", description="Reinforcement learning for language models with DAPO."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(
        commands.add_parser(
            "run",
            help="train, with everything on this machine",
            description=_RUN_HELP,
            epilog=_RUN_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_evaluate(
        commands.add_parser(
            "evaluate",
            help="avg@K, pass@k and maj@K of a model on a data set",
            description=arguments_of_evaluate.DESCRIPTION,
            epilog=arguments_of_evaluate.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    config = commands.add_parser("config", help="config check FILE, config show FILE")
    of_configs = config.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_check(of_configs)
    _add_show(of_configs)
    _add_plan(commands)
    commands.add_parser("verify", help="judge responses on stdin (dapod verify --help)")
    model = commands.add_parser("model", help="model fetch: prepare the quickstart's model")
    _add_fetch(model.add_subparsers(title="commands", metavar="COMMAND", required=True))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the run's TOML file")
    parser.add_argument("--steps", metavar="N", help="steps to train in all (run.steps)")
    parser.add_argument(
        "--rollouts",
        type=_count,
        default=1,
        metavar="N",
        help="rollout processes, each with an engine of its own (default: 1)",
    )
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where the run's files go")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in DIR, or with the newest of this config",
    )
    parser.add_argument(
        "--redis-url",
        metavar="URL",
        default=os.environ.get("DAPOD_REDIS_URL"),
        help="redis://…, rediss://… or unix://…; default: DAPOD_REDIS_URL, or else an "
        "embedded Valkey; with a password use the variable, others can read a command line",
    )
    _add_set(parser)
    parser.set_defaults(command=_run)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    arguments_of_evaluate.add(parser)
    _add_set(parser)


def _add_check(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("check", help="check a config file and show what follows from it")
    parser.add_argument("config", type=Path, metavar="FILE")
    _add_set(parser)
    parser.set_defaults(command=_check)


def _add_show(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser("show", help="every value of a config, and where it comes from")
    parser.add_argument("config", type=Path, metavar="FILE")
    _add_set(parser)
    parser.set_defaults(command=_show)


def _add_fetch(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser(
        "fetch", help="prepare the quickstart's model, SmolLM2-135M-Instruct"
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("models/smollm2-135m-instruct"),
        metavar="DIR",
        help="where it goes (default: %(default)s)",
    )
    parser.set_defaults(command=_fetch)


def _add_plan(commands: "argparse._SubParsersAction[Parser]") -> None:
    parser = commands.add_parser(
        "plan",
        help="what fits on which GPUs, and how long a step takes",
        description=plan.DESCRIPTION,
        epilog=plan.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the run's TOML file")
    plan.add_arguments(parser)
    _add_set(parser)
    parser.set_defaults(command=_plan)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="section.key=value",
        dest="overrides",
        help="change one setting, as often as needed; a relative path counts from the "
        "config file's directory",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 64")
    return int(text)


def _load(chosen: argparse.Namespace) -> RunConfig:
    return configuration.load(chosen.config, chosen.overrides)


def _run(chosen: argparse.Namespace) -> int:
    # Imported late: --help and a wrong argument need none of it.
    from dapod.cli.preflight import Request
    from dapod.cli.run import run

    if chosen.steps is not None:
        chosen.overrides.append(f"run.steps={chosen.steps}")
    return run(
        Request(
            config_file=chosen.config,
            config=_load(chosen),
            rollouts=chosen.rollouts,
            run_dir=chosen.run_dir,
            resume=chosen.resume,
            redis_url=chosen.redis_url or None,
            environment=dict(os.environ),
        )
    )


def _check(chosen: argparse.Namespace) -> int:
    from dapod.cli.config_check import check

    print("\n".join(check(chosen.config, chosen.overrides)))
    return 0


def _show(chosen: argparse.Namespace) -> int:
    from dapod.cli.config_values import effective

    print("\n".join(effective(chosen.config, chosen.overrides)))
    return 0


def _plan(chosen: argparse.Namespace) -> int:
    return plan.plan(chosen, _load(chosen))


def _verify(arguments: Sequence[str]) -> NoReturn:
    """Becomes the reward service's own program, which has its own arguments."""
    os.execv(sys.executable, [sys.executable, "-m", "services.reward.verify", *arguments])


def _fetch(chosen: argparse.Namespace) -> int:
    from dapod.cli.model import fetch

    fetch(chosen.dir, say=print)
    return 0


if __name__ == "__main__":
    sys.exit(main())
