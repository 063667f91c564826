"""Log-probs in chunks: the numbers of the straightforward way, at a fraction of its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from dapod.config import ConfigError
from services.trainer.logprobs import ResponseLogProbs
from tests.trainer.harness import OF_THE_LIBRARIES

pytestmark = OF_THE_LIBRARIES

VOCABULARY = 101
CHUNK_TOKENS = 4
CHUNK_BYTES = CHUNK_TOKENS * 4 * VOCABULARY
TEMPERATURE = 0.7

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    # What happens to logits behind the head: soft-capping, division, multiplication.
    "gemma2": {"final_logit_softcapping": 1.5},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.3},
    # Its outputs have fields of their own.
    "mixtral": {"num_local_experts": 4},
}


def make_model(architecture: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[architecture](
        **(SMALL | ARCHITECTURES.get(architecture, {}) | settings)
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def make_batch(rows: int, length: int, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """Every position but each row's first two predicts a response token."""
    generator = torch.Generator().manual_seed(1)
    columns = torch.arange(2, length).repeat(rows)
    return {
        "input_ids": torch.randint(1, vocabulary, (rows, length), generator=generator),
        "positions": torch.arange(length).repeat(rows, 1),
        "mask": None,
        "rows": torch.arange(rows).repeat_interleave(length - 2),
        "columns": columns,
        "targets": torch.randint(1, vocabulary, (len(columns),), generator=generator),
    }


def straightforward(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """From the logits of all tokens of all rows, in one piece."""
    logits = model(input_ids=batch["input_ids"], position_ids=batch["positions"]).logits
    chosen = logits[batch["rows"], batch["columns"]].float() / TEMPERATURE
    logprobs = torch.log_softmax(chosen, dim=-1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, batch["targets"][:, None])[:, 0], entropies


def gradients_of(model: Any, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss in which no two tokens weigh the same."""
    model.zero_grad()
    (logprobs * torch.linspace(-1.0, 1.0, len(logprobs))).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunks_give_the_log_probs_entropies_and_gradients_of_the_whole(architecture: str) -> None:
    model, batch = make_model(architecture), make_batch(rows=3, length=11)
    assert len(batch["targets"]) > 6 * CHUNK_TOKENS
    wanted, wanted_entropies = straightforward(model, batch)
    wanted_gradients = gradients_of(model, wanted)

    in_chunks = ResponseLogProbs(model, TEMPERATURE, logits_bytes=CHUNK_BYTES)
    logprobs, entropies = in_chunks(**batch)
    gradients = gradients_of(model, logprobs)

    assert logprobs.dtype is torch.float32 and not entropies.requires_grad
    torch.testing.assert_close(logprobs, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropies, wanted_entropies, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in gradients.items():
        error = (gradient - wanted_gradients[name]).norm() / wanted_gradients[name].norm()
        assert error <= 1e-5, name


@pytest.mark.parametrize("tokens", [CHUNK_TOKENS - 1, CHUNK_TOKENS, CHUNK_TOKENS + 1])
def test_a_last_chunk_may_be_of_any_size(tokens: int) -> None:
    model, batch = make_model("llama"), make_batch(rows=1, length=tokens + 2)
    logprobs, _ = ResponseLogProbs(model, TEMPERATURE, logits_bytes=CHUNK_BYTES)(**batch)
    torch.testing.assert_close(logprobs, straightforward(model, batch)[0], rtol=1e-5, atol=1e-6)


def test_the_parameters_are_the_models_own_and_each_is_there_once() -> None:
    model = make_model("llama")
    asked = ResponseLogProbs(model, 1.0)
    assert {f"model.{n}" for n, _ in model.named_parameters()} == {
        n for n, _ in asked.named_parameters(remove_duplicate=False)
    } - {"model.lm_head.weight"}
    assert asked.state_dict().keys() == {f"model.{name}" for name in model.state_dict()}


class LiveLogits(TorchDispatchMode):
    """Bytes of all tensors whose last dimension is the vocabulary: each one's, and those alive at
    the same time. Counts what every operation returns, in forward and backward."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.largest = 0
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self._vocabulary,):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self._alive[reference.cdata] = (reference, storage.nbytes())
                self.largest = max(self.largest, storage.nbytes())
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return result


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_chunk_is_the_most_that_is_made_and_seven_the_most_that_are_kept(
    architecture: str,
) -> None:
    vocabulary, chunk = 5003, 16
    chunk_bytes = 4 * vocabulary * chunk
    model = make_model(architecture, vocab_size=vocabulary, hidden_size=8, initializer_range=0.02)
    in_chunks = ResponseLogProbs(model, 1.0, logits_bytes=chunk_bytes)
    most = []
    for length in (66, 258):
        batch = make_batch(rows=1, length=length, vocabulary=vocabulary)
        with LiveLogits(vocabulary) as logits:
            in_chunks(**batch)[0].sum().backward()
        assert logits.largest == chunk_bytes
        most.append(logits.most)
    # 4 or 16 chunks: what lives at once does not grow with the tokens. The head's weight, which
    # also has the vocabulary in its shape, is half a chunk here.
    assert most[0] == most[1] <= 7 * chunk_bytes

    with LiveLogits(vocabulary) as logits:
        straightforward(model, batch)[0].sum().backward()
    assert logits.most > 16 * 3 * chunk_bytes


def test_without_a_gradient_no_more_than_a_chunk_is_kept_either() -> None:
    vocabulary, chunk = 5003, 16
    model = make_model("llama", vocab_size=vocabulary, hidden_size=8)
    in_chunks = ResponseLogProbs(model, 1.0, logits_bytes=4 * vocabulary * chunk)
    batch = make_batch(rows=1, length=258, vocabulary=vocabulary)
    with LiveLogits(vocabulary) as logits, torch.no_grad():
        logprobs, _ = in_chunks(**batch)
    assert not logprobs.requires_grad
    assert logits.most <= 4 * 4 * vocabulary * chunk


def test_a_model_whose_head_cannot_be_asked_apart_is_refused() -> None:
    model = make_model("opt", ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=64)
    with pytest.raises(ConfigError, match="OPTForCausalLM cannot be computed"):
        ResponseLogProbs(model, 1.0)
