"""An engine's key-value cache and how many rollouts it holds, worked out by hand."""

import pytest

from dapod.plan.model_shape import ModelShape
from dapod.plan.rollout_memory import RolloutMemory, rollout_memory
from tests.dapod.plan_cases import ROUND_GPU, SEVEN, THIRTY_TWO, assume, make_config


def computed(shape: ModelShape, **rollout: object) -> RolloutMemory:
    config = make_config(rollout={"groups_in_flight": 4, **rollout})
    return rollout_memory(config, shape, ROUND_GPU, assume(config))


def test_what_the_weights_leave_is_cache() -> None:
    memory = computed(SEVEN, gpu_memory_ratio=0.5)
    assert memory.given_bytes == 40e9
    assert memory.weights_bytes == 2 * 7_615_616_512
    # 8192 tokens of 6·18944 + 8·3584 bytes, and 3 tensors of 32 rollouts by 152064 in fp32.
    assert memory.pass_bytes == 8192 * (113_664 + 28_672) + 3 * 4 * 32 * 152_064
    # 28 layers, keys and values of 4 heads of 128, bf16.
    assert memory.cache_bytes_per_token == 2 * 2 * 28 * 512 == 57_344
    left = 40e9 - 2 * 7_615_616_512 - 1_166_016_512 - 58_392_576
    assert memory.cache_bytes == left
    assert memory.cache_tokens == int(left / 57_344) == 410_581
    assert memory.full_length_rollouts == 410  # of 1000 tokens
    assert memory.asked_rollouts == memory.concurrent_rollouts == 32


def test_a_small_cache_samples_fewer_rollouts_than_asked_for() -> None:
    memory = computed(SEVEN, gpu_memory_ratio=0.207)
    # 80e9·0.207 leaves 104,357,888 bytes: 1819 tokens, or 3 rollouts of mean length 500.
    assert memory.cache_tokens == 1819
    assert (memory.full_length_rollouts, memory.concurrent_rollouts) == (1, 3)


@pytest.mark.parametrize(
    ("tensor_parallel", "per_token"),
    [(1, 262_144), (4, 65_536), (8, 32_768), (20, 32_768)],
)
def test_cache_is_split_as_far_as_there_are_key_value_heads(
    tensor_parallel: int, per_token: int
) -> None:
    memory = computed(THIRTY_TWO, tensor_parallel=tensor_parallel)
    assert memory.cache_bytes_per_token == per_token
    assert memory.weights_bytes == 2 * 32_763_876_352 / tensor_parallel


def test_weights_that_leave_no_room_for_one_rollout_do_not_fit() -> None:
    memory = computed(THIRTY_TWO, gpu_memory_ratio=0.8)
    assert not memory.fits
    assert (memory.cache_bytes, memory.concurrent_rollouts) == (0, 0)
    assert computed(THIRTY_TWO, tensor_parallel=2).fits


def test_a_pass_is_counted_with_the_tokens_that_the_engine_is_given() -> None:
    many = computed(SEVEN, groups_in_flight=2000)
    assert many.asked_rollouts == many.pass_tokens == 16_000
    assert many.pass_bytes == 16_000 * (113_664 + 28_672) + 3 * 4 * 16_000 * 152_064
    assert computed(SEVEN, groups_in_flight=1).pass_tokens == 8 * 1000
