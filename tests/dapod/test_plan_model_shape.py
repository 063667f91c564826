"""A model's shape: its parameters are those of the real model, and unknown kinds are refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dapod.config import ConfigError
from dapod.plan.model_shape import KNOWN, find_shape, shape_of
from tests.dapod.plan_cases import SMALL, THIRTY_TWO, make_config


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_parameters_are_those_of_transformers_own_model(kind: str, tied: bool) -> None:
    described = AutoConfig.for_model(
        kind,
        hidden_size=48,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=300,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert shape_of(described.to_dict(), kind).parameters == counted


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Embeddings 151936·896 = 136,134,656, tied. A layer: q, o 2·896·896 + k, v 2·896·128
        # + biases 896 + 2·128 + MLP 3·896·4864 + norms 2·896 = 14,912,384; 24 of them; norm 896.
        ("qwen2.5-0.5b", 136_134_656 + 24 * 14_912_384 + 896),
        ("qwen2.5-7b", 7_615_616_512),
        # Embeddings and head 2·152064·5120 = 1,557,135,360. A layer: 2·5120·5120 + 2·5120·1024
        # + biases 5120 + 2·1024 + MLP 3·5120·27648 + norms 2·5120 = 487,605,248; 64; norm 5120.
        ("qwen2.5-32b", 1_557_135_360 + 64 * 487_605_248 + 5120),
    ],
)
def test_known_models_have_their_published_size(name: str, parameters: int) -> None:
    assert shape_of(KNOWN[name], name).parameters == parameters


def test_a_small_model_worked_out_by_hand() -> None:
    assert SMALL.parameters == 3560
    assert SMALL.published_bytes == 7120
    # Keys and values of 2 layers, 2 heads of 2, 2 bytes each.
    assert SMALL.key_value_bytes_per_token == 2 * 2 * (2 * 2) * 2
    # Multiplied: 2·976 in layers and 800 in the head. Attention over a row of 10: 4·2·8·10/2.
    assert SMALL.forward_flops_per_token(10) == 2 * (2 * 976 + 800) + 320


def test_the_cache_of_a_token_of_the_papers_model() -> None:
    # 64 layers, keys and values of 8 heads of 128, bf16: 256 KiB.
    assert THIRTY_TWO.key_value_bytes_per_token == 262_144


def test_the_models_own_config_comes_before_the_table(tmp_path: Path) -> None:
    directory = tmp_path / "qwen2.5-7b"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(dict(KNOWN["qwen2.5-0.5b"])))
    config = make_config(model={"path": str(directory)})
    assert find_shape(config, None).layers == 24
    other = tmp_path / "other.json"
    other.write_text(json.dumps(dict(KNOWN["qwen2.5-32b"])))
    assert find_shape(config, other).layers == 64


def test_instruction_tuned_models_have_the_shape_and_a_shorter_context() -> None:
    config = make_config(model={"path": "/nowhere/Qwen2.5-7B-Instruct"})
    assert (find_shape(config, None).layers, find_shape(config, None).context) == (28, 32768)


def test_an_unknown_model_asks_for_its_config() -> None:
    with pytest.raises(ConfigError, match="--model-shape"):
        find_shape(make_config(model={"path": "/nowhere/mine"}), None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not one that plan knows"),
        ({"hidden_size": None}, "has no hidden_size"),
    ],
)
def test_a_config_that_the_arithmetic_is_not_about_is_refused(change: dict, says: str) -> None:
    described = {k: v for k, v in {**KNOWN["qwen2.5-7b"], **change}.items() if v is not None}
    with pytest.raises(ConfigError, match=says):
        shape_of(described, "it")
