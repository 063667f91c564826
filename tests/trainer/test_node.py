"""Which ranks a node starts, and where the nodes meet."""

import pytest

from dapod.config import ConfigError
from dapod.environment import Environment
from services.trainer.launch import JOIN_SECONDS, _arguments
from services.trainer.node import Node

MASTER = "trainer-node-0-0.trainer:29500"


def node(ranks, **variables):
    named = {f"DAPOD_TRAINER_{name.upper()}": value for name, value in variables.items()}
    return Node.of(Environment(variables=named), ranks)


def test_without_variables_all_ranks_are_here_and_meet_on_loopback():
    alone = node(4)
    assert (alone.index, alone.count, alone.ranks) == (0, 1, 4)
    assert alone.master[0] == "127.0.0.1" and alone.master[1] > 0


def test_the_ranks_are_shared_out_evenly():
    second = node(32, nodes="4", node="1", master=MASTER)
    assert second == Node(index=1, count=4, ranks=8, master=("trainer-node-0-0.trainer", 29500))


def test_the_agent_is_told_all_of_it():
    arguments = _arguments(node(32, nodes="4", node="1", master=MASTER), "services.trainer")
    assert arguments[:3] == ["--nnodes=4", "--node-rank=1", "--nproc-per-node=8"]
    assert "--master-addr=trainer-node-0-0.trainer" in arguments
    assert "--master-port=29500" in arguments
    assert "--max-restarts=0" in arguments
    assert f"--rdzv-conf=timeout={JOIN_SECONDS}" in arguments
    assert arguments[-2:] == ["-m", "services.trainer"]


@pytest.mark.parametrize(
    ("ranks", "variables", "says"),
    [
        (6, {"nodes": "4", "master": MASTER}, "trainer.ranks.*6.*4 nodes"),
        (2, {"nodes": "4", "master": MASTER}, "trainer.ranks.*2.*4 nodes"),
        (8, {"nodes": "0"}, "NODE=0 is not one of DAPOD_TRAINER_NODES=0"),
        (8, {"nodes": "2", "node": "2", "master": MASTER}, "NODE=2 is not one of"),
        (8, {"nodes": "two"}, "DAPOD_TRAINER_NODES=two is not a number"),
        (8, {"nodes": "2", "node": "-1", "master": MASTER}, "DAPOD_TRAINER_NODE=-1"),
        (8, {"nodes": "2"}, "DAPOD_TRAINER_MASTER is not set"),
        (8, {"nodes": "2", "master": "trainer-0"}, "is not host:port"),
        (8, {"nodes": "2", "master": "trainer-0:99999"}, "is not host:port"),
    ],
)
def test_what_cannot_be_is_refused_with_the_variable_to_change(ranks, variables, says):
    with pytest.raises(ConfigError, match=says):
        node(ranks, **variables)
