"""Starts the trainer service: `python -m services.trainer`, environment in `dapod.environment`.

Started by hand or by a container it checks what it is given and launches its ranks; started by
torchrun it is one of them. The first rank of each node serves the ops pages, for its node's
liveness; metrics are rank 0's alone. The others bind no port.
"""

import os
import sys

from dapod.config import ConfigError
from dapod.environment import Environment
from dapod.service import Service, build, main, refuse
from services.trainer.launch import check, die_with_launcher, launch


def start() -> int:
    """Checks, launches the ranks and waits for them; returns the exit status."""
    try:
        service = build("trainer", Environment.from_os())
        check(service)
    except ConfigError as error:
        return refuse(str(error))
    return launch(service)


def serve(service: Service) -> None:
    """One rank. Imported here: torch and DeepSpeed take seconds, and `start` does not need them."""
    from services.trainer.rank import serve

    serve(service)


if __name__ == "__main__":
    if "RANK" not in os.environ:
        sys.exit(start())
    die_with_launcher()
    main("trainer", serve, serves_ops=os.environ["LOCAL_RANK"] == "0")
