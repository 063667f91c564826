"""`dapod evaluate` with the engine double: `python fake_evaluate.py ARGUMENTS`."""

import argparse
import sys

from dapod.cli.evaluate import arguments
from dapod.cli.evaluate.command import evaluate
from dapod.cli.evaluate.services import MODULES
from dapod.config import ConfigError


def main() -> int:
    parser = argparse.ArgumentParser()
    arguments.add(parser)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    modules = {**MODULES, "engine": "tests.cli.evaluate.fake_engine"}
    try:
        return evaluate(arguments.flags(parser.parse_args()), sys.argv[1:], modules)
    except ConfigError as error:
        print(f"dapod: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
