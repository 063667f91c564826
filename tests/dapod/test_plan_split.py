"""Which GPUs train and which sample; what has no place is refused with what to change."""

import pytest

from dapod.config import ConfigError
from dapod.plan.hardware import GPUS, Machines, gpu_named
from dapod.plan.split import check_shape, split_of
from tests.dapod.plan_cases import ROUND_GPU, SEVEN, make_config


def split(nodes: int, gpus: int, **keys: dict):
    machines = Machines(nodes=nodes, gpus_per_node=gpus, gpu=ROUND_GPU)
    return split_of(make_config(**keys), machines)


@pytest.mark.parametrize(
    ("nodes", "gpus", "tensor_parallel", "replicas", "idle"),
    [
        (1, 8, 1, 4, 0),  # 4 train, 4 sample
        (1, 8, 3, 1, 1),  # one of the 4 is left over
        (4, 8, 2, 2 + 3 * 4, 0),
        (2, 8, 8, 1, 4),  # no engine fits beside the trainer, one on the second node
        (2, 4, 4, 1, 0),
        (3, 2, 2, 1, 0),  # two nodes train
    ],
)
def test_what_the_trainer_leaves_samples(
    nodes: int, gpus: int, tensor_parallel: int, replicas: int, idle: int
) -> None:
    found = split(nodes, gpus, rollout={"tensor_parallel": tensor_parallel})
    assert (found.trainer_gpus, found.rollout_replicas, found.idle_gpus) == (4, replicas, idle)
    assert found.trainer_gpus + found.rollout_gpus + idle == nodes * gpus
    assert not found.shared


def test_a_trainer_takes_whole_nodes() -> None:
    found = split(3, 2)
    assert (found.trainer_nodes, found.trainer_gpus, found.rollout_gpus) == (2, 4, 2)
    assert split(1, 8).trainer_nodes == 1


def test_a_single_gpu_is_shared() -> None:
    found = split(1, 1, trainer={"ranks": 1})
    assert (found.shared, found.trainer_gpus, found.rollout_replicas) == (True, 1, 1)


@pytest.mark.parametrize(
    ("nodes", "gpus", "keys", "says"),
    [
        (1, 2, {}, "trainer.ranks .4. has no place on 1 node.s. of 2 GPU.s."),
        (2, 3, {}, "set it to 3 or less, or to whole nodes of 3"),
        (2, 2, {}, "no engine fits beside the trainer: 0 of 4 GPUs are left"),
        (1, 4, {"rollout": {"tensor_parallel": 8}}, "set rollout.tensor_parallel=4 or less"),
        (1, 4, {}, "lower trainer.ranks"),
        (1, 8, {"rollout": {"tensor_parallel": 7}}, "no engine fits beside the trainer"),
    ],
)
def test_what_has_no_place_is_refused(nodes: int, gpus: int, keys: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        split(nodes, gpus, **keys)


def test_heads_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(ConfigError, match="must divide the model's 28 attention heads"):
        check_shape(make_config(rollout={"tensor_parallel": 8}), SEVEN)


def test_rollouts_longer_than_the_models_context_are_refused() -> None:
    long = make_config(
        sampling={"max_response_tokens": 131_072}, trainer={"tokens_per_micro_batch": 200_000}
    )
    with pytest.raises(ConfigError, match="the model's context is 131072 tokens"):
        check_shape(long, SEVEN)


def test_gpus_are_found_by_name_and_unknown_ones_are_refused_with_the_known() -> None:
    assert gpu_named("H100") is GPUS["h100"]
    with pytest.raises(ConfigError, match="known are h100, h200"):
        gpu_named("h1000")


def test_every_gpu_says_where_its_numbers_are_from() -> None:
    assert all(gpu.source for gpu in GPUS.values())
