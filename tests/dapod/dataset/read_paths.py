"""Reads data sets in a process of its own: `read_paths.py PATH...` prints what is said of each.

huggingface_hub reads its variables once, when it is imported.
"""

import json
import sys

from dapod.config import ConfigError, Data
from dapod.dataset import read_data


def said(path: str) -> str:
    try:
        return str(read_data(Data(path=path, verifier="integer")))
    except ConfigError as error:
        return f"ConfigError: {error}"


if __name__ == "__main__":
    print(json.dumps([said(path) for path in sys.argv[1:]]))
