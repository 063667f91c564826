"""Log-probs and entropies of the response tokens, without the logits of all of them at once.

    ids ──decoder──► hidden states [R, L, H] ──the T positions that predict a response token──►
        [T, H] ──C at a time: head, the model's own scaling, softmax──► log-probs [T], entropies [T]

Logits are the largest tensor by far: 20,000 tokens of a vocabulary of 152,000 are 12 GB in float32.
Here at most C tokens' are there, forward and backward: backward computes a chunk's logits again.
C follows from `LOGITS_BYTES`; a single chunk is not computed twice.

What a model does with its logits after the head (soft-capping, scaling) still happens: a chunk goes
through the model's own `forward`, with the decoder replaced by one that hands over given hidden
states. A model for which that does not work is refused.

This module knows no engine, optimiser or loss: a frozen model is asked the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch.utils.checkpoint import checkpoint

from dapod.config import ConfigError

LOGITS_BYTES = 256 * 2**20
"""Size of one float32 tensor [C, vocabulary]. Backward holds 5.3 times as much at its fullest with
bf16 weights (the scaled logits and what becomes of their gradients), 5.8 times where logits are
soft-capped; forward 2 times. C is 441 for a vocabulary of 152,064, so the matrix products stay
large, and 1,365 for one of 49,152."""


class ResponseLogProbs(torch.nn.Module):
    """`model` (a Hugging Face causal model), asked only about response tokens.

    Raises `ConfigError` for a model whose head cannot be asked in chunks.
    """

    def __init__(self, model: Any, temperature: float, *, logits_bytes: int = LOGITS_BYTES) -> None:
        super().__init__()
        self.model = model
        self.head = ChunkedHead(model, temperature, logits_bytes)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        rows: torch.Tensor,
        columns: torch.Tensor,
        targets: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """([T] log-probs of the targets, [T] entropies without gradient), float32, at the
        temperature."""
        hidden = self.model.base_model(
            input_ids=input_ids, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        logprobs, entropies = self.head(hidden[rows, columns], targets)
        return logprobs, entropies


class ChunkedHead(torch.nn.Module):
    """Hidden states [T, H] in, log-probs and entropies [T] out.

    A module of its own for ZeRO-3, which gathers sharded weights where a module is called: those of
    the head are named as its own, so they are gathered once however many chunks there are. The
    head itself is called without its hooks: ranks with different numbers of chunks must not gather
    different numbers of times.
    """

    def __init__(self, model: Any, temperature: float, logits_bytes: int) -> None:
        super().__init__()
        self._temperature = temperature
        self._logits = _logits_of(model)
        head = model.get_output_embeddings()
        for parameter in head.parameters():
            deepspeed.zero.register_external_parameter(self, parameter)
        vocabulary = _probe(model, self._logits, next(head.parameters()))
        self._chunk_tokens = max(1, logits_bytes // (4 * vocabulary))

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if len(targets) <= self._chunk_tokens:
            return self._chunk(hidden, targets)
        chunks = zip(
            hidden.split(self._chunk_tokens), targets.split(self._chunk_tokens), strict=True
        )
        logprobs, entropies = zip(
            # There is no dropout, so no random state to restore.
            *(
                checkpoint(self._chunk, *c, use_reentrant=False, preserve_rng_state=False)
                for c in chunks
            ),
            strict=True,
        )
        return torch.cat(logprobs), torch.cat(entropies)

    def _chunk(
        self, hidden: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # The logits are divided by the temperature, never the log-probs (trl#4159).
        logits = self._logits(hidden).float() / self._temperature
        normaliser = torch.logsumexp(logits, dim=-1)
        logprobs = logits.gather(-1, targets[:, None])[:, 0] - normaliser
        with torch.no_grad():
            mean_logit = torch.softmax(logits, dim=-1).mul_(logits).sum(-1)
            entropies = normaliser.detach() - mean_logit
        return logprobs, entropies


class _HiddenStates(tuple[torch.Tensor]):
    """What a decoder returns; of its many optional fields (caches, attentions) none is set."""

    @property
    def last_hidden_state(self) -> torch.Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Given(torch.nn.Module):
    """Stands where the decoder was: the hidden states are there already."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> _HiddenStates:
        return _HiddenStates([inputs_embeds])


class _Bare(torch.nn.Module):
    """A module's computation without its hooks."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.forward = module.forward


def _logits_of(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """[C, H] -> [C, vocabulary]: what the model does after its decoder, and nothing else.

    The model is left as it is; its own `forward` runs on a copy of its shell.
    """
    head = model.get_output_embeddings()
    names = [name for name, child in model.named_children() if child is head]
    if model.base_model is model or len(names) != 1:
        raise _refusal(model)
    shell = copy.copy(model)
    shell._modules = {
        **model._modules,
        model.base_model_prefix: _Given(),
        names[0]: _Bare(head),
    }

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = shell.forward(inputs_embeds=hidden[None]).logits[0]
        return found

    return logits


def _probe(model: Any, logits: Callable[[torch.Tensor], torch.Tensor], weight: torch.Tensor) -> int:
    """The size of the vocabulary, from one hidden state that is all zeros."""
    with torch.no_grad():
        try:
            found = logits(weight.new_zeros(1, weight.shape[-1]))
        except Exception as error:
            # Whatever a foreign forward stumbles over, it cannot be asked this way.
            raise _refusal(model) from error
    if found.ndim != 2 or len(found) != 1:
        raise _refusal(model)
    return found.shape[-1]


def _refusal(model: Any) -> ConfigError:
    return ConfigError(
        f"model.path: the logits of {type(model).__name__} cannot be computed from its decoder's "
        f"hidden states in chunks: choose a model with a decoder and one head, such as Llama, "
        f"Qwen, Gemma or Mixtral"
    )
