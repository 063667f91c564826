"""This node's part of the trainer: how many ranks it starts, and where the nodes meet.

`trainer.ranks` counts the ranks of all nodes; every node has the same number. Which node this is
says the environment (`dapod.environment`), never the config: all nodes read the same file.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from dapod.config import ConfigError
from dapod.environment import Environment


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of `count`."""

    index: int
    """Node 0 has rank 0 and the port where all nodes meet."""
    count: int
    ranks: int
    """Ranks on this node."""
    master: tuple[str, int]
    """Host and port on node 0."""

    @classmethod
    def of(cls, environment: Environment, ranks: int) -> Node:
        """`ranks` is their number on all nodes. Raises `ConfigError`."""
        index, count = environment.trainer_node, environment.trainer_nodes
        if not index < count:
            raise ConfigError(
                f"DAPOD_TRAINER_NODE={index} is not one of DAPOD_TRAINER_NODES={count} nodes, "
                f"which count from 0"
            )
        if ranks % count:
            raise ConfigError(
                f"trainer.ranks ({ranks}) cannot be shared out evenly to {count} nodes: make it a "
                f"multiple of DAPOD_TRAINER_NODES"
            )
        master = environment.trainer_master if count > 1 else ("127.0.0.1", _free_port())
        return cls(index=index, count=count, ranks=ranks // count, master=master)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
