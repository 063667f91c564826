"""What one trainer GPU holds, term by term, at its fullest moment: in the backward pass.

States, in bytes a parameter (P parameters, R ranks), as DeepSpeed holds them under the settings of
services/trainer/policy.py. ZeRO (Rajbhandari et al., 1910.02054, section 3.1) counts 2 + 2 + 12;
our gradients accumulate in fp32, so they take 4.

    zero_stage   weights          gradients         optimiser
    0            4P + 2P          4P                8P          fp32 weights, cast for each pass
    1            2P               4P + 2P           12P/R       fp32 sums, bf16 of the last pass
    2            2P               4P/R              12P/R
    3            2P/R + gathered  4P/R              12P/R

With `offload_optimiser`, optimiser and gradients of stages 2 and 3 are in the node's memory. A test
counts the tensors of a real engine on one rank: the table is what they add up to.

Activations follow Korthikanti et al. (2205.05198, section 4.1) in counting what each operation
keeps for its backward pass, but for this family's layer as transformers runs it in bf16: RMSNorm in
fp32, gated MLP, attention that keeps no scores. Tests compare with what torch really keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapod.config import RunConfig
from dapod.plan.model_shape import ModelShape

GIB = 2**30
REDUCE_BUCKET = 500_000_000
"""Elements that DeepSpeed reduces at once, its default `reduce_bucket_size`: held in bf16, sent in
fp32. A larger tensor is reduced alone."""
LOGITS_BYTES = 256 * 2**20
"""One float32 tensor of logits in services/trainer/logprobs.py, which has up to five at once."""
GATHERED_PARAMETERS = 1_000_000_000
"""Most parameters that ZeRO-3 holds gathered, its default `stage3_max_live_parameters`."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One line of the sum."""

    name: str
    bytes: float
    how: str
    """The formula in words."""


@dataclass(frozen=True, kw_only=True)
class TrainerMemory:
    """One trainer GPU, and the node's own memory."""

    terms: tuple[Term, ...]
    capacity_bytes: float
    loading_bytes: float
    """Held for a moment at the start: DeepSpeed takes the whole model before it shares it out."""
    host_bytes: float
    """Of a node, its ranks together."""

    @property
    def bytes(self) -> float:
        return sum(term.bytes for term in self.terms)

    @property
    def fits(self) -> bool:
        return max(self.bytes, self.loading_bytes) <= self.capacity_bytes

    @property
    def largest(self) -> Term:
        return max(self.terms, key=lambda term: term.bytes)


def trainer_memory(
    config: RunConfig,
    shape: ModelShape,
    *,
    capacity_bytes: float,
    reserve_bytes: float,
    nodes: int = 1,
) -> TrainerMemory:
    """Every micro-batch is taken as full. The ranks are on `nodes` nodes."""
    terms = (
        *_states(config, shape),
        _communication(config, shape),
        *_activations(config, shape),
        _logits(config, shape),
        *_reference(config, shape),
        Term(name="reserve", bytes=reserve_bytes, how="assumed"),
    )
    return TrainerMemory(
        terms=tuple(term for term in terms if term.bytes),
        capacity_bytes=capacity_bytes,
        loading_bytes=_loading(config, shape) + reserve_bytes,
        # The copies are gone by the time the offloaded states are made.
        host_bytes=max(config.trainer.ranks * _whole(config, shape), _offloaded(config, shape))
        / nodes,
    )


def _states(config: RunConfig, shape: ModelShape) -> tuple[Term, ...]:
    stage, ranks = config.trainer.zero_stage, config.trainer.ranks
    parameters, share = shape.parameters, shape.parameters / ranks
    offloaded = config.trainer.offload_optimiser
    weights = {
        0: (6 * parameters, "fp32, and bf16 copies during a pass: 4 P + 2 P"),
        1: (2 * parameters, "bf16: 2 P"),
        2: (2 * parameters, "bf16: 2 P"),
        3: (2 * share, f"bf16 over {ranks} ranks: 2 P / R"),
    }[stage]
    gradients = {
        0: (4 * parameters, "fp32: 4 P"),
        1: (6 * parameters, "fp32 sums and bf16 of the last pass: 4 P + 2 P"),
        2: (4 * share, f"fp32 over {ranks} ranks: 4 P / R"),
        3: (4 * share, f"fp32 over {ranks} ranks: 4 P / R"),
    }[stage]
    optimiser = (12 * share, f"fp32 weights, two moments over {ranks} ranks: 12 P / R")
    if stage == 0:
        optimiser = (8 * parameters, "two fp32 moments: 8 P")
    terms = [("weights", *weights)]
    if stage == 3:
        gathered = 2 * min(GATHERED_PARAMETERS, parameters)
        terms.append(("gathered weights", gathered, "bf16 layers in use: 2 min(P, 1e9)"))
    if not (offloaded and stage >= 2):
        terms.append(("gradients", *gradients))
    if not offloaded:
        terms.append(("optimiser states", *optimiser))
    return tuple(Term(name=name, bytes=size, how=how) for name, size, how in terms)


def _offloaded(config: RunConfig, shape: ModelShape) -> float:
    """fp32 weights and moments; gradients twice, as they accumulate and as the update reads them;
    below ZeRO-3 the new bf16 weights on their way back."""
    if not config.trainer.offload_optimiser:
        return 0.0
    return (20.0 if config.trainer.zero_stage == 3 else 22.0) * shape.parameters


def _communication(config: RunConfig, shape: ModelShape) -> Term:
    if config.trainer.zero_stage < 2:
        elements = min(REDUCE_BUCKET, shape.parameters) if config.trainer.ranks > 1 else 0
        return Term(name="gradient bucket", bytes=4 * elements, how="fp32: 4 min(5e8, P)")
    largest = shape.largest_tensor_parameters
    alone = largest > REDUCE_BUCKET
    reduced = 6 * largest if alone else 4 * min(REDUCE_BUCKET, shape.parameters)
    return Term(
        name="gradient bucket",
        bytes=2 * REDUCE_BUCKET + reduced,
        how="bf16: 2 5e8; " + ("the largest tensor, both ways: 6 V h" if alone else "fp32: twice"),
    )


def activation_bytes_per_token(shape: ModelShape) -> int:
    """What one layer keeps of a token for its backward pass."""
    norms = 2 * (8 * shape.hidden + 4)  # fp32 input, bf16 before and after the weight, the scale
    attention = 4 * shape.query_width + 4 * shape.key_value_width + 4 * shape.heads
    if shape.query_key_norm:
        attention += 6 * (shape.query_width + shape.key_value_width)
        attention += 4 * (shape.heads + shape.key_value_heads)
    mlp = 8 * shape.intermediate  # gate, its activation, up, their product
    return norms + attention + mlp


def _activations(config: RunConfig, shape: ModelShape) -> tuple[Term, ...]:
    tokens = config.trainer.tokens_per_micro_batch
    layer = tokens * activation_bytes_per_token(shape)
    ends = tokens * 8 * shape.hidden  # the last norm, and the rows that the head is asked about
    going_back = tokens * (6 * shape.intermediate + 8 * shape.hidden)
    if config.trainer.gradient_checkpointing:
        kept = shape.layers * tokens * 2 * shape.hidden
        kept_how = f"inputs of {shape.layers} layers: 2 h L tokens"
        again = Term(name="one layer again", bytes=layer, how="recomputed in the backward pass")
        first = Term(name="activations", bytes=kept + ends, how=kept_how)
        terms: tuple[Term, ...] = (first, again)
    else:
        how = f"all of {shape.layers} layers, {activation_bytes_per_token(shape):,} a token each"
        terms = (Term(name="activations", bytes=shape.layers * layer + ends, how=how),)
    return (*terms, Term(name="their gradients", bytes=going_back, how="of one layer: 6 f + 8 h"))


def _logits(config: RunConfig, shape: ModelShape) -> Term:
    """The head runs on as many response tokens as make `LOGITS_BYTES`, forward and backward."""
    all_of_them = 4 * shape.vocabulary * config.trainer.tokens_per_micro_batch
    return Term(
        name="logits chunk",
        bytes=5 * min(LOGITS_BYTES, all_of_them),
        how="five fp32 tensors of at most 256 MiB",
    )


def _reference(config: RunConfig, shape: ModelShape) -> tuple[Term, ...]:
    """The frozen model of the KL term (services/trainer/reference.py)."""
    if not config.algorithm.kl_coefficient:
        return ()
    if config.trainer.zero_stage == 3:
        share, how = config.trainer.ranks, f"bf16 over {config.trainer.ranks} ranks: 2 P / R"
    else:
        share, how = 1, "bf16: 2 P"
    return (Term(name="reference model", bytes=2 * shape.parameters / share, how=how),)


def _loading(config: RunConfig, shape: ModelShape) -> float:
    """DeepSpeed moves a whole model to the GPU and then shares it out: first the policy, then, when
    the policy's states are there, the reference model."""
    whole = float(_whole(config, shape))
    share = 2 * shape.parameters / config.trainer.ranks if config.trainer.zero_stage == 3 else 0.0
    if not config.algorithm.kl_coefficient:
        return whole + share
    states = sum(term.bytes for term in _states(config, shape))
    return states + 2 * shape.parameters + share


def _whole(config: RunConfig, shape: ModelShape) -> int:
    return (4 if config.trainer.zero_stage == 0 else 2) * shape.parameters
