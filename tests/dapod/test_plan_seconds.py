"""Seconds of a step by phase and the engines a trainer needs, worked out by hand."""

import pytest

from dapod.config import ConfigError
from dapod.plan.assumptions import assumptions_of
from dapod.plan.hardware import Machines
from dapod.plan.run_plan import RunPlan, make_plan
from dapod.plan.seconds import decoding_of, work_of
from tests.dapod.plan_cases import ROUND_GPU, SEVEN, SMALL, assume, make_config

ROW = 500
"""Mean prompt 50 and mean response 450: half of the limits."""
FORWARD = 2 * (28 * 233_057_792 + 152_064 * 3584) + 4 * 28 * 3584 * ROW / 2
"""A token of SEVEN: a layer has 233,057,792 parameters, the head 152064·3584."""


def planned(*given: str, **keys: dict) -> RunPlan:
    config = make_config(**keys)
    machines = Machines(nodes=1, gpus_per_node=8, gpu=ROUND_GPU)
    return make_plan(config, SEVEN, machines, assume(config, *given))


def test_the_work_of_a_step() -> None:
    config = make_config()
    work = work_of(config, SEVEN, assume(config))
    # 16 prompts of 8, half of the groups are dropped; 4 updates.
    assert (work.rollouts_trained, work.rollouts_sampled) == (128, 256)
    assert work.tokens_sampled == 256 * 450
    assert work.tokens_trained == 128 * 500
    assert work.training_flops == pytest.approx(3 * FORWARD * 64_000)
    assert work.old_logprob_flops == pytest.approx(FORWARD * 64_000 * 3 / 4)


@pytest.mark.parametrize(
    ("keys", "passes"),
    [
        ({}, 3),
        ({"trainer": {"gradient_checkpointing": True}}, 4),
        ({"algorithm": {"kl_coefficient": 0.001}}, 4),
    ],
)
def test_passes_over_the_tokens(keys: dict, passes: int) -> None:
    config = make_config()
    config = make_config(
        trainer=config.trainer.model_dump() | keys.get("trainer", {}),
        algorithm=config.algorithm.model_dump() | keys.get("algorithm", {}),
    )
    work = work_of(config, SEVEN, assume(config))
    assert work.training_flops == pytest.approx(passes * FORWARD * 64_000)


def test_old_logprobs_are_free_with_one_update_or_the_engines_own() -> None:
    for keys in ({"prompts_per_update": 16}, {"old_logprobs": "rollout"}):
        config = make_config(algorithm=make_config().algorithm.model_dump() | keys)
        assert work_of(config, SEVEN, assume(config)).old_logprob_flops == 0


def test_without_dynamic_sampling_nothing_is_dropped() -> None:
    algorithm = make_config().algorithm.model_dump() | {"dynamic_sampling": False}
    config = make_config(algorithm=algorithm)
    assert assumptions_of(config, []).informative_share == 1.0


def test_decoding_reads_weights_and_cache_or_computes() -> None:
    assumed = assume(make_config())
    # 2 GPUs of 2e12 bytes/s read 7120 bytes of weights and 10 caches of 500 tokens of 32 bytes.
    few = decoding_of(10, 2, SMALL, ROUND_GPU, assumed)
    assert few.bound == "memory"
    assert few.seconds_per_pass == pytest.approx((7120 + 10 * 500 * 32) / 4e12)
    assert few.tokens_per_second == pytest.approx(10 / few.seconds_per_pass)
    # SEVEN with many short sequences computes longer than it reads.
    short = assume(make_config(), "prompt_tokens=1", "response_tokens=1")
    many = decoding_of(1000, 1, SEVEN, ROUND_GPU, short)
    assert many.bound == "arithmetic"
    assert many.seconds_per_pass == pytest.approx(1000 * SEVEN.forward_flops_per_token(4) / 1e15)


def test_the_slower_side_sets_the_pace() -> None:
    plan = planned()
    seconds = plan.seconds
    assert seconds is not None and plan.decoding is not None
    published = 2 * 7_615_616_512
    # 32 rollouts at a time on each of 4 engines.
    one_pass = (published + 32 * 500 * 57_344) / 2e12
    assert plan.decoding.seconds_per_pass == pytest.approx(one_pass)
    assert seconds.sample == pytest.approx(256 * 450 / 32 * one_pass / 4)
    assert seconds.change_over == pytest.approx(900 * one_pass / 2 + published / 1e9)
    assert seconds.verify == pytest.approx(256 / 500)
    assert seconds.old_logprobs == pytest.approx(FORWARD * 64_000 * 0.75 / 4e15)
    assert seconds.update == pytest.approx(3 * FORWARD * 64_000 / 4e15)
    assert seconds.publish == pytest.approx(2 * published / 1e9)
    assert seconds.step == max(seconds.rollout_side, seconds.trainer_side)
    assert seconds.wait == seconds.step - seconds.trainer_side
    assert plan.steps_per_day == pytest.approx(86_400 / seconds.step)
    assert plan.written_per_day == pytest.approx(published * plan.steps_per_day)
    assert plan.read_per_day == pytest.approx(9 * plan.written_per_day)


def test_with_the_engines_it_asks_for_the_trainer_does_not_wait() -> None:
    slow = ("bandwidth_share=0.05", "mfu=0.005", "storage_gb_per_second=1000")
    before = planned(*slow).seconds
    assert before is not None and before.wait > 0
    needed = before.stops_waiting
    assert needed is not None and needed > 4
    config = make_config()
    for engines, waits in ((needed - 1, True), (needed, False)):
        machines = Machines(nodes=1, gpus_per_node=4 + engines, gpu=ROUND_GPU)
        seconds = make_plan(config, SEVEN, machines, assume(config, *slow)).seconds
        assert seconds is not None
        assert (seconds.wait > 0) == waits


def test_taking_turns_the_trainer_always_waits() -> None:
    algorithm = make_config().algorithm.model_dump() | {"max_staleness": 0}
    seconds = planned(algorithm=algorithm).seconds
    assert seconds is not None and seconds.turns and seconds.stops_waiting is None
    assert seconds.step == seconds.rollout_side + seconds.trainer_side


def test_an_offloaded_update_takes_the_nodes_memory_bandwidth() -> None:
    here = planned().seconds
    trainer = make_config().trainer.model_dump() | {"offload_optimiser": True}
    there = planned(trainer=trainer).seconds
    assert here is not None and there is not None
    # 4 updates of 28 bytes a parameter at 100 GB/s.
    assert there.update - here.update == pytest.approx(4 * 28 * 7_615_616_512 / 100e9)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("mfo=0.5", "did you mean mfu?"),
        ("mfu", "write it as name=number"),
        ("mfu=1.5", "greater than 0 and at most 1"),
        ("storage_gb_per_second=0", "greater than 0"),
        ("storage_gb_per_second=nan", "greater than 0"),
        ("response_tokens=901", "cannot be more than sampling.max_response_tokens"),
    ],
)
def test_assumptions_out_of_bounds_are_refused(given: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        assumptions_of(make_config(), [given])
    assert says in str(caught.value)
