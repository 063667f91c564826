"""Prints one entry of every data set of reasoning-gym that can be generated here, as JSON by name.

A program of its own: importing the library leaves placeholders in sys.modules.
"""

import contextlib
import importlib
import json
import random
import sys

import numpy as np

from dapod.reasoning_gym import import_library


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):  # some data sets print
        import_library()
        factory = importlib.import_module("reasoning_gym.factory")
        entries = {}
        for name in sorted(factory.DATASETS):
            random.seed(0)  # two data sets draw from the global generators
            np.random.seed(0)
            with contextlib.suppress(Exception):  # docs/verifiers.md names those that cannot be
                entry = factory.create_dataset(name, size=1, seed=0)[0]
                entries[name] = json.dumps(entry, default=str)
    print(json.dumps(entries))


if __name__ == "__main__":
    main()
