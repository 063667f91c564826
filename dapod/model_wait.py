"""Waits until the run's model is whole: `python -m dapod.model_wait`, environment in `environment`.

What runs before a service where the model's volume may still be being filled: an init container on
Kubernetes, a `depends_on` elsewhere. A service itself does not wait for files, it refuses them.
"""

from __future__ import annotations

import sys
import time

from dapod import config
from dapod.config import ConfigError, RunConfig
from dapod.environment import Environment
from dapod.model_files import check_model

WAIT_SECONDS = 1800.0
LOOK_UP_SECONDS = 1.0


def wait(run: RunConfig, *, seconds: float = WAIT_SECONDS) -> None:
    """Returns when the model can be trained; raises the last `ConfigError` after `seconds`."""
    deadline = time.monotonic() + seconds
    said = ""
    while True:
        try:
            return check_model(run)
        except ConfigError as error:
            if time.monotonic() >= deadline:
                raise
            if str(error) != said:
                said = str(error)
                print(f"dapod: waiting: {said}", file=sys.stderr, flush=True)
        time.sleep(LOOK_UP_SECONDS)


if __name__ == "__main__":
    try:
        wait(config.load(Environment.from_os().config_path))
    except ConfigError as refusal:
        print(f"dapod: {refusal}", file=sys.stderr, flush=True)
        sys.exit(2)
