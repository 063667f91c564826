"""`dapod plan` as a whole: what fits, what does not and what to change, Redis and disks."""

import json
import re
from pathlib import Path

import pytest

from dapod import config as configuration
from dapod.cli.__main__ import main
from dapod.config import RunConfig
from dapod.plan.hardware import Machines, gpu_named
from dapod.plan.model_shape import ModelShape
from dapod.plan.run_plan import RunPlan, make_plan
from dapod.plan.storage import redis_of, storage_of
from tests.dapod.plan_cases import SEVEN, THIRTY_TWO, assume, make_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
PAGE = ROOT / "docs" / "plan.md"
MADE_FOR = {
    "dapo_qwen2.5_32b.toml": ("--nodes", "4", "--gpus-per-node", "8", "--gpu", "h100"),
    "dapo_qwen2.5_7b.toml": ("--gpus-per-node", "8", "--gpu", "h100"),
    "gsm8k_qwen2.5_0.5b.toml": ("--gpu", "l4"),
}
"""The machines each config says it is made for."""


def planned(config: RunConfig, shape: ModelShape = SEVEN, gpu: str = "h100") -> RunPlan:
    machines = Machines(nodes=1, gpus_per_node=8, gpu=gpu_named(gpu))
    return make_plan(config, shape, machines, assume(config))


def with_trainer(**keys: object) -> RunConfig:
    return make_config(trainer=make_config().trainer.model_dump() | keys)


def test_redis_holds_the_longest_responses_of_all_live_steps() -> None:
    config = make_config()
    redis = redis_of(config, assume(config))
    # A group: 8 rollouts of 8·900 + 256 bytes, a prompt of 4·100, 256 more; 16 groups; 5 + 1 + 1.
    assert redis.step_bytes == 16 * (8 * 7456 + 400 + 256)
    assert redis.bytes == 7 * redis.step_bytes
    assert redis.mean_step_bytes == 16 * (8 * 8 * 450 + 4 * 50)


@pytest.mark.parametrize(("stage", "per_parameter"), [(0, 12), (3, 14)])
def test_what_lies_on_disks(stage: int, per_parameter: int) -> None:
    storage = storage_of(with_trainer(zero_stage=stage), SEVEN)
    assert storage.publish_bytes == 2 * 7_615_616_512
    assert storage.policies_bytes == 3 * storage.publish_bytes
    assert storage.checkpoint_bytes == per_parameter * 7_615_616_512
    assert storage.checkpoints_bytes == 3 * storage.checkpoint_bytes


@pytest.mark.parametrize(
    ("trainer", "gpu", "says"),
    [
        # 16 P over 4 ranks and 2 P on each are 46 GB; half a million tokens do not fit beside.
        ({"tokens_per_micro_batch": 500_000}, "h100", "set trainer.tokens_per_micro_batch=1000"),
        # Unsharded: 18 P are 137 GB.
        ({"zero_stage": 0}, "h100", "set trainer.zero_stage=3"),
        # 18 P / 4 are 34 GB, activations of 2000 tokens 13 GB.
        ({"zero_stage": 3, "tokens_per_micro_batch": 1000}, "l40s", "gradient_checkpointing=true"),
        ({"zero_stage": 3}, "a100-40g", "trainer.offload_optimiser=true"),
    ],
)
def test_a_trainer_that_does_not_fit_says_which_setting_makes_it_fit(
    trainer: dict, gpu: str, says: str
) -> None:
    config = with_trainer(**trainer)
    (refusal,) = planned(config, gpu=gpu).refusals
    assert refusal.startswith("a trainer GPU needs ")
    assert "the largest term is " in refusal
    assert says in refusal


def test_what_the_refusal_advises_is_enough() -> None:
    config = with_trainer(zero_stage=1, tokens_per_micro_batch=8000)
    (refusal,) = planned(config, gpu="l40s").refusals
    keys = refusal.rpartition(": set ")[2].split(" and ")
    changed = dict(key.removeprefix("trainer.").split("=") for key in keys)
    values = {name: json.loads(value) for name, value in changed.items()}
    assert planned(config).trainer.bytes > 48e9
    assert not planned(with_trainer(**{"zero_stage": 1, **values}), gpu="l40s").refusals
    for name in values:
        fewer = {key: value for key, value in values.items() if key != name}
        start = {"zero_stage": 1, "tokens_per_micro_batch": 8000}
        assert planned(with_trainer(**(start | fewer)), gpu="l40s").refusals, f"{name} is idle"


def test_where_no_setting_helps_it_says_so() -> None:
    config = make_config(
        sampling={"max_prompt_tokens": 100, "max_response_tokens": 100_000},
        trainer=make_config().trainer.model_dump() | {"tokens_per_micro_batch": 110_000},
    )
    (refusal,) = planned(config, gpu="l40s").refusals
    assert "even with trainer." in refusal and "choose GPUs with more memory" in refusal


def test_a_model_that_no_gpu_can_take_whole_at_the_start_is_refused_as_that() -> None:
    config = make_config(rollout={"groups_in_flight": 1, "tensor_parallel": 4})
    (refusal,) = planned(config, THIRTY_TWO, gpu="a100-40g").refusals
    assert "must take the whole model at the start" in refusal
    assert "a smaller model" in refusal


def test_an_engine_that_does_not_fit_says_what_to_raise() -> None:
    plan = planned(make_config(), THIRTY_TWO, gpu="l40s")
    assert "raise rollout.tensor_parallel (now 1, at most 8)" in plan.refusals[1]
    assert plan.seconds is None


def test_more_rollouts_than_the_cache_holds_are_noted() -> None:
    config = make_config(rollout={"groups_in_flight": 1000})
    assert any("lower rollout.groups_in_flight to " in note for note in planned(config).notes)


def run(*arguments: str) -> int:
    return main(["plan", *arguments])


@pytest.mark.parametrize("name", sorted(MADE_FOR))
def test_a_shipped_config_fits_the_machines_it_is_made_for(name: str, capsys) -> None:
    assert run(str(CONFIGS / name), *MADE_FOR[name], "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["fits"], told["refusals"], told["notes"]) == (True, [], [])
    assert f"--gpu {MADE_FOR[name][-1]}" in (CONFIGS / name).read_text()


def test_the_text_names_every_term_and_every_assumption(capsys) -> None:
    assert run(str(CONFIGS / "dapo_qwen2.5_7b.toml"), "--gpus-per-node", "8") == 0
    said = capsys.readouterr().out
    for words in ("optimiser states", "key-value cache", "least maxmemory", "engines needed"):
        assert words in said
    for name in ("mfu", "response_tokens", "storage_gb_per_second"):
        assert f"\n  {name} " in said
    assert max(map(len, said.splitlines())) <= 100


def test_what_does_not_fit_is_one_sentence_and_exit_status_2(capsys) -> None:
    assert run(str(CONFIGS / "dapo_qwen2.5_7b.toml"), "--gpus-per-node=8", "--gpu=l4") == 2
    out, err = capsys.readouterr()
    assert "optimiser states" in out
    assert err.startswith("dapod: a trainer GPU needs ") and err.count("\n") == 1


def test_json_says_what_does_not_fit(capsys) -> None:
    config = str(CONFIGS / "dapo_qwen2.5_7b.toml")
    assert run(config, "--gpus-per-node=8", "--gpu=l4", "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert not told["fits"] and told["refusals"] and told["seconds"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--gpu", "h1000"), "known are h100"),
        (("--nodes", "0"), "is not a number from 1 on"),
        (("--assume", "mfo=1"), "did you mean mfu?"),
        (("--model-shape", "nosuch.json"), "cannot read nosuch.json"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments: tuple[str, str], says: str, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        raise SystemExit(run(str(CONFIGS / "dapo_qwen2.5_7b.toml"), *arguments))
    assert left.value.code == 2
    assert says in capsys.readouterr().err


OVERLAY = ROOT / "k8s" / "overlays" / "single-node-gpu" / "run.toml"


def test_the_gpu_overlay_fits_the_smallest_gpus_it_names(capsys) -> None:
    assert "8 NVIDIA GPUs of 40 GB or more" in (OVERLAY.parent / "kustomization.yaml").read_text()
    assert run(str(OVERLAY), "--gpus-per-node", "8", "--gpu", "a100-40g", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["split"]["rollout_replicas"] == 4


def test_the_overlay_of_several_nodes_fits_as_its_head_says(capsys) -> None:
    folder = ROOT / "k8s" / "overlays" / "multi-node"
    (command,) = re.findall(r"dapod plan (k8s/.+)", (folder / "kustomization.yaml").read_text())
    config, *arguments = command.split()
    assert run(str(ROOT / config), *arguments, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["split"]["trainer_nodes"], told["split"]["rollout_replicas"]) == (2, 8)
    asked = re.findall(r"memory: (\d+)Gi", (folder / "trainer.yaml").read_text())[0]
    assert told["trainer_node_bytes"] < int(asked) * 2**30


def test_the_gpu_overlay_learns_what_the_one_gpu_config_learns() -> None:
    ours = configuration.load(CONFIGS / "gsm8k_qwen2.5_0.5b.toml")
    assert configuration.load(OVERLAY).digest() == ours.digest()


def test_the_pages_example_is_what_the_command_prints(capsys) -> None:
    before, _, rest = PAGE.read_text().partition("```text\n")
    example, _, _ = rest.partition("```")
    command, _, shown = example.partition("\n")
    assert before and command.startswith("$ dapod plan configs/")
    config, *arguments = command.removeprefix("$ dapod plan ").split()
    assert run(str(ROOT / config), *arguments) == 0
    assert shown == capsys.readouterr().out, f"put in docs/plan.md what prints: {command[2:]}"
