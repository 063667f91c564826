"""A model's shape: what its config.json says, how many parameters that makes, what a token costs.

Dense decoders with RMSNorm, rotary positions, grouped-query attention and a gated MLP: the model
types below. Parameters are counted matrix by matrix (tests compare with transformers' own models).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapod.config import ConfigError, RunConfig
from dapod.model_files import read_json

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers of a config.json that memory and time follow from."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """Whether the head is the embedding matrix."""
    query_key_value_bias: bool
    output_bias: bool
    query_key_norm: bool
    context: int
    """Longest sequence the model was made for, tokens."""

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        return self.key_value_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        attention = 2 * self.hidden * (self.query_width + self.key_value_width)
        if self.query_key_value_bias:
            attention += self.query_width + 2 * self.key_value_width
        if self.output_bias:
            attention += self.hidden
        if self.query_key_norm:
            attention += 2 * self.head_dim
        norms = 2 * self.hidden
        return attention + 3 * self.hidden * self.intermediate + norms

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        matrices = 1 if self.tied else 2
        return (
            matrices * self.embedding_parameters
            + self.layers * self.layer_parameters
            + self.hidden  # the last norm
        )

    @property
    def largest_tensor_parameters(self) -> int:
        return max(self.embedding_parameters, self.hidden * self.intermediate)

    @property
    def published_bytes(self) -> int:
        """bf16, every tensor once."""
        return 2 * self.parameters

    @property
    def key_value_bytes_per_token(self) -> int:
        """bf16 keys and values of all layers."""
        return 2 * 2 * self.layers * self.key_value_width

    def forward_flops_per_token(self, row_tokens: float) -> float:
        """2 for each parameter that is multiplied, and the attention: Kaplan et al., 2001.08361,
        table 1. A token of a causal row of `row_tokens` sees half of the row on average."""
        multiplied = self.layers * self.layer_parameters + self.embedding_parameters
        attention = 4 * self.layers * self.query_width * row_tokens / 2
        return 2 * multiplied + attention


def shape_of(description: Mapping[str, Any], source: str) -> ModelShape:
    """From a parsed config.json. Raises `ConfigError` for a model this arithmetic is not about."""
    kind = description.get("model_type")
    if kind not in MODEL_TYPES:
        raise ConfigError(
            f"{source}: model_type {kind!r} is not one that plan knows ({', '.join(MODEL_TYPES)})"
        )
    try:
        heads = int(description["num_attention_heads"])
        hidden = int(description["hidden_size"])
        biased = bool(description.get("attention_bias"))
        return ModelShape(
            layers=int(description["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(description["intermediate_size"]),
            heads=heads,
            key_value_heads=int(description.get("num_key_value_heads") or heads),
            head_dim=int(description.get("head_dim") or hidden // heads),
            vocabulary=int(description["vocab_size"]),
            tied=bool(description.get("tie_word_embeddings")),
            query_key_value_bias=kind == "qwen2" or biased,
            output_bias=biased and kind != "qwen2",
            query_key_norm=kind == "qwen3",
            context=int(description["max_position_embeddings"]),
        )
    except KeyError as error:
        raise ConfigError(f"{source} has no {error.args[0]}") from error


def _qwen25(**sizes: Any) -> Mapping[str, Any]:
    return {"model_type": "qwen2", **sizes}


KNOWN: Mapping[str, Mapping[str, Any]] = {
    "qwen2.5-0.5b": _qwen25(
        num_hidden_layers=24,
        hidden_size=896,
        intermediate_size=4864,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
    ),
    "qwen2.5-7b": _qwen25(
        num_hidden_layers=28,
        hidden_size=3584,
        intermediate_size=18944,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
        max_position_embeddings=131072,
    ),
    "qwen2.5-32b": _qwen25(
        num_hidden_layers=64,
        hidden_size=5120,
        intermediate_size=27648,
        num_attention_heads=40,
        num_key_value_heads=8,
        vocab_size=152064,
        tie_word_embeddings=False,
        max_position_embeddings=131072,
    ),
}
"""config.json of Qwen/Qwen2.5-0.5B, -7B and -32B on the Hugging Face hub, for planning before a
download. The instruction-tuned models have the same shapes and a context of 32768."""


def find_shape(config: RunConfig, file: Path | None) -> ModelShape:
    """Of `file` if given, else of the model's own config.json, else of the table by name."""
    directory = Path(config.model.path)
    own = directory / "config.json"
    if file is not None or own.is_file():
        read = file or own
        return shape_of(read_json(read), str(read))
    name = directory.name.lower()
    known = KNOWN.get(name.removesuffix("-instruct"))
    if known is None:
        raise ConfigError(
            f"model.path: {directory} does not exist and its shape is not known here: "
            f"give its config.json with --model-shape"
        )
    if name.endswith("-instruct"):
        known = {**known, "max_position_embeddings": 32768}
    return shape_of(known, name)
