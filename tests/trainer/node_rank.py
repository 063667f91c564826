"""One rank on one of several nodes, without a model: it meets the others; the last rank then fails.

    python -m tests.trainer.node_rank INDEX COUNT PORT OUTPUT     the launcher of one node
    (under it, by torchrun's agent)                               its only rank

Every rank leaves a file in OUTPUT that says whom it met.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from services.trainer.launch import run_ranks
from services.trainer.node import Node

FAILURE = 3
"""Exit status of the rank that fails."""


def launch(index: str, count: str, port: str, output: str) -> int:
    os.environ["NODE_RANK_OUTPUT"] = output
    node = Node(index=int(index), count=int(count), ranks=1, master=("127.0.0.1", int(port)))
    return run_ranks(node, "tests.trainer.node_rank")


def rank() -> int:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    mine, size = dist.get_rank(), dist.get_world_size()
    met = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(met, torch.tensor([mine]))
    said = {"met": [int(one) for one in met], "local": os.environ["LOCAL_RANK"]}
    (Path(os.environ["NODE_RANK_OUTPUT"]) / f"{mine}.json").write_text(json.dumps(said))
    if mine == size - 1:
        os._exit(FAILURE)
    dist.barrier()
    return 0


if __name__ == "__main__":
    sys.exit(rank() if "RANK" in os.environ else launch(*sys.argv[1:]))
