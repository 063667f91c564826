"""Memory of a trainer GPU: worked out by hand, and against what torch keeps for a backward pass."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dapod.config import RunConfig
from dapod.plan.model_shape import ModelShape, shape_of
from dapod.plan.trainer_memory import TrainerMemory, activation_bytes_per_token, trainer_memory
from tests.dapod.plan_cases import SEVEN, SMALL, make_config

P = 7_615_616_512


def computed(config: RunConfig, shape: ModelShape = SEVEN) -> TrainerMemory:
    return trainer_memory(config, shape, capacity_bytes=80e9, reserve_bytes=1e9)


def terms(config: RunConfig, shape: ModelShape = SEVEN) -> dict[str, float]:
    return {term.name: term.bytes for term in computed(config, shape).terms}


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimiser"),
    [
        (0, 6 * P, 4 * P, 8 * P),
        (1, 2 * P, 6 * P, 12 * P / 4),
        (2, 2 * P, 4 * P / 4, 12 * P / 4),
        (3, 2 * P / 4, 4 * P / 4, 12 * P / 4),
    ],
)
def test_states_by_zero_stage(stage: int, weights: float, gradients: float, optimiser: float):
    found = terms(make_config(trainer={"zero_stage": stage}))
    assert found["weights"] == weights
    assert found["gradients"] == gradients
    assert found["optimiser states"] == optimiser


def test_only_zero_3_gathers_weights_and_never_more_than_the_model() -> None:
    assert "gathered weights" not in terms(make_config(trainer={"zero_stage": 2}))
    assert terms(make_config(trainer={"zero_stage": 3}))["gathered weights"] == 2e9
    small = terms(make_config(trainer={"zero_stage": 3}), SMALL)
    assert small["gathered weights"] == 2 * 3560


def test_offloading_moves_optimiser_and_gradients_to_the_node() -> None:
    offloaded = make_config(trainer={"zero_stage": 3, "offload_optimiser": True})
    assert not {"gradients", "optimiser states"} & set(terms(offloaded))
    # 12 bytes of states and 2·4 of gradients, over all four ranks; ZeRO-2 has 2 more for weights.
    assert computed(offloaded).host_bytes == 20 * P
    second = make_config(trainer={"zero_stage": 2, "offload_optimiser": True})
    assert computed(second).host_bytes == 22 * P
    first = terms(make_config(trainer={"zero_stage": 1, "offload_optimiser": True}))
    assert first["gradients"] == 6 * P  # ZeRO-1 sums the whole gradient on every GPU


def test_every_rank_starts_with_the_whole_model() -> None:
    memory = computed(make_config(trainer={"zero_stage": 3}))
    assert memory.loading_bytes == 2 * P + 2 * P / 4 + 1e9
    assert memory.host_bytes == 4 * 2 * P


def test_the_bucket_holds_the_largest_tensor_when_that_is_larger() -> None:
    # 152064·3584 = 544,997,376 elements of the embedding, more than 5e8.
    assert terms(make_config())["gradient bucket"] == 2 * 5e8 + 6 * 544_997_376
    assert terms(make_config(), SMALL)["gradient bucket"] == 2 * 5e8 + 4 * 3560
    one = make_config(trainer={"ranks": 1, "zero_stage": 1})
    assert "gradient bucket" not in terms(one)


def test_activations_with_and_without_checkpointing() -> None:
    # h = 3584, f = 18944, queries 3584 wide, keys 512, 28 heads. Norms 2·(8h + 4) = 57,352;
    # attention 4·3584 + 4·512 + 4·28 = 16,496; MLP 8f = 151,552.
    layer = 57_352 + 16_496 + 151_552
    assert activation_bytes_per_token(SEVEN) == layer
    tokens, ends = 2000, 8 * 3584
    all_kept = terms(make_config())
    assert all_kept["activations"] == tokens * (28 * layer + ends)
    again = terms(make_config(trainer={"gradient_checkpointing": True}))
    assert again["activations"] == tokens * (28 * 2 * 3584 + ends)
    assert again["one layer again"] == tokens * layer
    for found in (all_kept, again):
        assert found["their gradients"] == tokens * (6 * 18944 + 8 * 3584)


def test_logits_are_never_held_for_all_tokens() -> None:
    assert terms(make_config())["logits chunk"] == 5 * 256 * 2**20
    # 2000 tokens of a vocabulary of 100 are less than a chunk.
    assert terms(make_config(), SMALL)["logits chunk"] == 5 * 4 * 100 * 2000


@pytest.mark.parametrize(("stage", "held"), [(0, 2 * P), (2, 2 * P), (3, 2 * P / 4)])
def test_the_reference_model_costs_only_where_there_is_a_kl_term(stage: int, held: float) -> None:
    assert "reference model" not in terms(make_config(trainer={"zero_stage": stage}))
    algorithm = make_config().algorithm.model_dump() | {"kl_coefficient": 0.001}
    config = make_config(trainer={"zero_stage": stage}, algorithm=algorithm)
    assert terms(config)["reference model"] == held


def test_the_reference_model_is_loaded_whole_beside_the_policys_states() -> None:
    algorithm = make_config().algorithm.model_dump() | {"kl_coefficient": 0.001}
    config = make_config(trainer={"zero_stage": 3}, algorithm=algorithm)
    states = 2 * P / 4 + 2e9 + 4 * P / 4 + 12 * P / 4
    assert computed(config).loading_bytes == states + 2 * P + 2 * P / 4 + 1e9


def kept_bytes(kind: str, layers: int, tokens: int) -> tuple[int, ModelShape]:
    """What torch keeps for the backward pass of a real, tiny model, weights left out."""
    described = AutoConfig.for_model(
        kind,
        hidden_size=64,
        intermediate_size=208,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=128,
    )
    model = AutoModelForCausalLM.from_config(described, attn_implementation="sdpa")
    model.to(torch.bfloat16).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(input_ids=torch.zeros(1, tokens, dtype=torch.int64), use_cache=False)
    sizes = (t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)
    return sum(sizes), shape_of(described.to_dict(), kind)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_layer_keeps_what_torch_really_keeps(kind: str) -> None:
    tokens = 256
    (one, shape), (three, _) = kept_bytes(kind, 1, tokens), kept_bytes(kind, 3, tokens)
    assert (three - one) / 2 == pytest.approx(tokens * activation_bytes_per_token(shape), rel=0.01)
