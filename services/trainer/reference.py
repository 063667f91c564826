"""The reference model of GRPO's KL term: version 0, model.path as it lies on disk, frozen.

Every trainer rank holds it beside its policy, in bf16: whole with ZeRO 0, 1 and 2 (2 bytes for each
parameter on each rank), sharded with ZeRO 3 (2 bytes for each parameter over all ranks together,
and the layer in use). It has neither gradients nor optimiser, is the same after every restart and
is loaded only for `algorithm.kl_coefficient` above 0. docs/decisions/0005 says why it is here.
"""

from __future__ import annotations

from pathlib import Path

import deepspeed
import torch
from deepspeed.ops import __compatible_ops__

from dapod.config import RunConfig
from services.trainer.batch import MicroBatch
from services.trainer.logprobs import ResponseLogProbs
from services.trainer.policy import ask, load_model
from services.trainer.ranks import Ranks


class Reference:
    """Called on every rank with the same number of micro-batches, as ZeRO-3 needs it."""

    def __init__(
        self, config: RunConfig, ranks: Ranks, *, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        __compatible_ops__["deepspeed_shm_comm"] = False  # as in policy: no compiler
        module = ResponseLogProbs(
            load_model(Path(config.model.path), dtype), config.sampling.temperature
        )
        module.requires_grad_(False)
        self._engine, _, _, _ = deepspeed.initialize(
            model=module,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "train_batch_size": ranks.size,
                "bf16": {"enabled": dtype is torch.bfloat16},
                # Stages 1 and 2 shard what a frozen model does not have.
                "zero_optimization": {"stage": 3 if config.trainer.zero_stage == 3 else 0},
            },
        )
        self._engine.eval()

    def log_probs(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """([T] log-probs, [T] entropies) of the response tokens, without a gradient."""
        with torch.no_grad():
            return ask(self._engine, batch)


def load_reference(
    config: RunConfig, ranks: Ranks, *, dtype: torch.dtype = torch.bfloat16
) -> Reference | None:
    """None where the run has no KL term."""
    if config.algorithm.kl_coefficient == 0.0:
        return None
    return Reference(config, ranks, dtype=dtype)
