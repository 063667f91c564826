"""What is published, what is saved, and that neither depends on the day."""

import hashlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dapod.config import ConfigError
from services.trainer import batch, cut
from services.trainer.policy import Policy
from tests.trainer.doubles import make_group, make_plan
from tests.trainer.harness import (
    OF_THE_LIBRARIES,
    VOCABULARY,
    RecordingPolicy,
    make_config,
    relative_error,
    train_step,
    write_tiny_model,
)

pytestmark = OF_THE_LIBRARIES

GROUPS = [make_group(f"0-{i}", [5, 3, 9, 2], correct=[True, False, False, True]) for i in range(4)]

SEVEN_TOKENS = 7 * 4 * VOCABULARY
"""Logits of seven tokens: every micro-batch here takes several chunks."""


def assemble_one(groups):
    """One micro-batch of everything."""
    rows = [
        row
        for update in cut.updates(make_plan(0, groups, len(groups)))
        for row in cut.cut(update, ranks=1, tokens_per_micro_batch=4096)[0][0]
    ]
    weights = {group.group_id: [1.0] * len(group.rollouts) for group in groups}
    named = {group.group_id: group for group in groups}
    return batch.assemble(rows, named, batch.advantages(named, scale="std"), weights)


def published(policy, directory):
    directory.mkdir()
    policy.write(directory)
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_an_untrained_policy_is_published_as_the_base_model_to_the_bit(
    tiny_model, ranks, tmp_path, zero_stage
):
    config = make_config(tiny_model, trainer={"zero_stage": zero_stage})
    tensors = published(Policy(config, ranks), tmp_path / "v0")
    base = load_file(tiny_model / "model.safetensors")
    assert tensors.keys() == base.keys()
    assert all(torch.equal(tensors[name], base[name]) for name in base)
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "v0" / name).read_bytes() == (tiny_model / name).read_bytes()


def test_an_untied_fp32_model_in_shards_is_published_the_same_way_in_bf16(ranks, tmp_path):
    base = write_tiny_model(tmp_path / "base", tie_word_embeddings=False)
    tensors = {name: t.float() for name, t in load_file(base / "model.safetensors").items()}
    (base / "model.safetensors").unlink()
    half = sorted(tensors)[: len(tensors) // 2]
    files = {name: f"model-0000{1 + (name not in half)}-of-00002.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file(
            {n: t for n, t in tensors.items() if files[n] == file}, base / file, {"format": "pt"}
        )
    index = '{"metadata": {}, "weight_map": ' + str(files).replace("'", '"') + "}"
    (base / "model.safetensors.index.json").write_text(index)
    settings = base / "config.json"
    settings.write_text(settings.read_text().replace('"bfloat16"', '"float32"'))

    (tmp_path / "v0").mkdir()
    Policy(make_config(base), ranks).write(tmp_path / "v0")
    assert '"bfloat16"' in (tmp_path / "v0" / "config.json").read_text()
    assert (tmp_path / "v0" / "model.safetensors.index.json").read_text() == index
    for file in set(files.values()):
        for name, tensor in load_file(tmp_path / "v0" / file).items():
            assert files[name] == file and torch.equal(tensor, tensors[name].bfloat16())


def test_a_tensor_that_could_not_be_published_is_refused_at_the_start(tiny_model, ranks, tmp_path):
    odd = shutil.copytree(tiny_model, tmp_path / "odd")
    tensors = load_file(odd / "model.safetensors") | {"model.extra.weight": torch.zeros(2)}
    save_file(tensors, odd / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"model\.extra\.weight"):
        Policy(make_config(odd), ranks)


def test_the_same_step_twice_gives_the_same_bits(tiny_model, ranks, tmp_path):
    plan, config = make_plan(0, GROUPS, 2), make_config(tiny_model)
    digests = []
    for run in "ab":
        policy = train_step(config, ranks, plan, GROUPS, dtype=torch.bfloat16).policy
        published(policy, tmp_path / run)
        digests.append(hashlib.sha256((tmp_path / run / "model.safetensors").read_bytes()).digest())
    base = hashlib.sha256((tiny_model / "model.safetensors").read_bytes()).digest()
    assert digests[0] == digests[1] != base


@pytest.mark.parametrize(
    ("zero_stage", "offload"),
    [(0, False), (1, False), (2, False), (3, False), (2, True), (3, True)],
)
def test_a_loaded_checkpoint_goes_on_to_the_same_bits(
    tiny_model, ranks, tmp_path, zero_stage, offload
):
    config = make_config(
        tiny_model, trainer={"zero_stage": zero_stage, "offload_optimiser": offload}
    )
    plan = make_plan(0, GROUPS, 2)
    trained = train_step(config, ranks, plan, GROUPS, dtype=torch.bfloat16)
    trained.policy.save(tmp_path / "checkpoint")
    resumed = train_step(
        config, ranks, plan, GROUPS, dtype=torch.bfloat16, load=tmp_path / "checkpoint"
    )
    straight = train_step(config, ranks, plan, GROUPS, policy=trained.policy)
    one = published(straight.policy, tmp_path / "one")
    two = published(resumed.policy, tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def plainly_trained(tiny_model, ranks):
    """All logits at once, every activation kept."""
    return train_step(make_config(tiny_model), ranks, make_plan(0, GROUPS, 2), GROUPS)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_neither_chunks_nor_gradient_checkpointing_change_the_gradient(
    tiny_model, ranks, plainly_trained, zero_stage, gradient_checkpointing
):
    config = make_config(
        tiny_model,
        trainer={"zero_stage": zero_stage, "gradient_checkpointing": gradient_checkpointing},
    )
    policy = RecordingPolicy(config, ranks, dtype=torch.float32, logits_bytes=SEVEN_TOKENS)
    other = train_step(config, ranks, make_plan(0, GROUPS, 2), GROUPS, policy=policy)
    assert len(other.gradients) == len(plainly_trained.gradients) == 2
    for one, two in zip(plainly_trained.gradients, other.gradients, strict=True):
        assert relative_error(one, two) <= 1e-5


def test_gradient_checkpointing_keeps_less_for_backward(tiny_model, ranks):
    kept = []
    for wanted in (False, True):
        policy = Policy(make_config(tiny_model, trainer={"gradient_checkpointing": wanted}), ranks)
        everything = assemble_one(GROUPS)
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            policy.log_probs(everything)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_an_offloaded_optimiser_makes_the_same_updates(tiny_model, ranks, tmp_path, zero_stage):
    trained = {}
    for offload in (False, True):
        config = make_config(
            tiny_model, trainer={"zero_stage": zero_stage, "offload_optimiser": offload}
        )
        policy = RecordingPolicy(config, ranks)
        device = policy._engine.zero_offload_optimizer()
        assert (device is not None and device.device == "cpu") is offload
        step = train_step(config, ranks, make_plan(0, GROUPS, 2), GROUPS, policy=policy)
        trained[offload] = step, published(policy, tmp_path / str(offload))
    for one, two in zip(trained[False][0].gradients, trained[True][0].gradients, strict=True):
        assert relative_error(one, two) <= 1e-5
    base = load_file(tiny_model / "model.safetensors")
    here, there = trained[False][1], trained[True][1]
    assert all(torch.equal(here[name], there[name]) for name in base)
    assert any(not torch.equal(there[name], base[name]) for name in base)


def test_an_offloaded_optimiser_without_zero_is_refused(tiny_model):
    with pytest.raises(ConfigError, match=r"set trainer\.zero_stage to 1, 2 or 3"):
        make_config(tiny_model, trainer={"zero_stage": 0, "offload_optimiser": True})


def test_the_learning_rate_warms_up_over_rollout_steps(tiny_model, ranks):
    settings = {"learning_rate": 1e-3, "warmup_steps": 4}
    policy = Policy(make_config(tiny_model, optimiser=settings), ranks)
    rates = [policy.learning_rate(step) for step in range(6)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])
