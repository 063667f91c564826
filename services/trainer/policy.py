"""The policy being trained: a Hugging Face causal model inside a DeepSpeed engine.

bf16 weights, fp32 master weights and fp32 gradient accumulation, torch's AdamW on all parameters.
It knows micro-batches and gradients, not groups, steps of the run or the buffer. Every method is
called on every rank.

DeepSpeed as used here (design: measured facts):
- no compiler: the shared-memory op it would build at start is declared unavailable;
- `backward(loss, scale_wrt_gas=False)`: the loss is already normalised over the whole update;
  DeepSpeed averages over ranks, which is undone by multiplying with their number;
- gradients accumulate and travel in fp32; the boundary of an update is set by hand, because the
  number of micro-batches differs from update to update;
- an update it skipped (a gradient that is not finite) is an error here: it says nothing by itself.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.ops import __compatible_ops__
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from dapod.config import ConfigError, RunConfig
from services.trainer.batch import MicroBatch
from services.trainer.layout import ModelLayout
from services.trainer.logprobs import LOGITS_BYTES, ResponseLogProbs
from services.trainer.ranks import Ranks

log = logging.getLogger("dapod.trainer")

_TAG = "engine"


class UpdateSkipped(RuntimeError):
    """The gradient was not finite, so there is no next policy."""


class Policy:
    """Weights, optimiser and the device they are on."""

    def __init__(
        self,
        config: RunConfig,
        ranks: Ranks,
        *,
        dtype: torch.dtype = torch.bfloat16,
        logits_bytes: int = LOGITS_BYTES,
    ) -> None:
        __compatible_ops__["deepspeed_shm_comm"] = False
        self._ranks = ranks
        self._optimiser = config.optimiser
        self._layout = ModelLayout.of(Path(config.model.path))
        self._sharded = config.trainer.zero_stage == 3
        model = load_model(Path(config.model.path), _stored(config, dtype))
        _check_names(model, self._layout)
        if config.trainer.gradient_checkpointing:
            _recompute_layers(model)
        self.module = ResponseLogProbs(
            model, config.sampling.temperature, logits_bytes=logits_bytes
        )
        self._engine, _, _, _ = deepspeed.initialize(
            model=self.module,
            model_parameters=list(self.module.parameters()),
            optimizer=lambda parameters: torch.optim.AdamW(
                parameters,
                lr=config.optimiser.learning_rate,
                weight_decay=config.optimiser.weight_decay,
                fused=True,  # one pass over memory instead of a dozen
            ),
            config=engine_settings(config, ranks.size, dtype),
        )
        self._engine.train()

    def log_probs(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """([T] log-probs, [T] entropies) of the response tokens, on the batch's device."""
        return ask(self._engine, batch)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Adds the gradient of one micro-batch; `last` is the update's last one."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._ranks.size, scale_wrt_gas=False)

    def update(self, learning_rate: float) -> float:
        """One optimiser update from the gradients so far; returns their norm before clipping."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        # Without ZeRO, DeepSpeed neither tells the norm nor minds one that is not finite.
        norm = None if self._engine.zero_optimization() else self._whole_norm()
        if norm is None or math.isfinite(norm):
            self._engine.step()
        if not self._engine.was_step_applied():
            raise UpdateSkipped(
                "there was no update because the gradient is not finite, and there will be none: "
                "start a new run (another run.name or --run-dir) with model.path = policies/v<N>, "
                "the newest of this run, and for example a lower optimiser.learning_rate"
            )
        return float(self._engine.get_global_grad_norm()) if norm is None else norm

    def _whole_norm(self) -> float:
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def learning_rate(self, step: int) -> float:
        """Linear warm-up over rollout steps, then constant (section 4.1)."""
        warmup = max(1, self._optimiser.warmup_steps)
        return self._optimiser.learning_rate * min(1.0, (step + 1) / warmup)

    def write(self, directory: Path | None) -> None:
        """Lays the policy down as the base model lay; only the rank that passes a directory writes.

        One file's tensors are in memory at a time.
        """
        held = dict(self.module.model.named_parameters(remove_duplicate=False))
        held.update(self.module.model.named_buffers(remove_duplicate=False))
        for file, names in self._layout.shards.items():
            tensors = {name: self._whole(held[name], directory is not None) for name in names}
            if directory is not None:
                save_file(tensors, directory / file, metadata={"format": "pt"})
        if directory is not None:
            self._layout.copy_descriptions(directory)

    def _whole(self, tensor: torch.Tensor, wanted: bool) -> torch.Tensor:
        """The tensor in bf16 on the CPU; ZeRO-3 keeps a share of it on each rank."""
        with deepspeed.zero.GatheredParameters([tensor], enabled=self._sharded):
            if not wanted:
                return tensor
            whole = tensor.detach()
            copied = whole.to(device="cpu", dtype=torch.bfloat16)
            return copied.clone() if copied is whole or self._sharded else copied

    def save(self, directory: Path) -> None:
        """DeepSpeed's own checkpoint: pickle, so it must stay on a volume that only the trainer
        mounts."""
        self._engine.save_checkpoint(str(directory), tag=_TAG, save_latest=False)

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote, weights, master weights and optimiser, to the bit."""
        loaded, _ = self._engine.load_checkpoint(str(directory), tag=_TAG)
        if loaded is None:
            raise FileNotFoundError(f"DeepSpeed found no checkpoint in {directory}")


def ask(engine: Any, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """What `ResponseLogProbs` inside a DeepSpeed engine says of a batch, on the batch's device."""
    device = engine.device
    logprobs, entropies = engine(
        input_ids=batch.input_ids.to(device),
        positions=batch.positions.to(device),
        mask=None if batch.mask is None else batch.mask.to(device),
        rows=batch.rows.to(device),
        columns=batch.columns.to(device),
        targets=batch.targets.to(device),
    )
    # A handful of numbers: the loss and its statistics are computed where the batch is.
    return logprobs.to(batch.weights.device), entropies.to(batch.weights.device)


def engine_settings(config: RunConfig, ranks: int, dtype: torch.dtype) -> dict[str, Any]:
    """The DeepSpeed configuration; nothing of it is for users."""
    return {
        # Counted in our own micro-batches; DeepSpeed's only have to be consistent.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": ranks,
        "bf16": {"enabled": _stored(config, dtype) is torch.bfloat16},
        # The ranks compute in bf16 either way.
        "torch_autocast": {
            "enabled": dtype is not _stored(config, dtype),
            "dtype": "bfloat16",
        },
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": _zero_settings(config),
        "zero_allow_untested_optimizer": True,
        # torch's AdamW runs on the CPU as it is; DeepSpeed's own is compiled when it is first used.
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": config.optimiser.gradient_clip,
        "steps_per_print": None,
    }


def _zero_settings(config: RunConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {"stage": config.trainer.zero_stage, "overlap_comm": False}
    if config.trainer.offload_optimiser:
        settings["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return settings


def _stored(config: RunConfig, dtype: torch.dtype) -> torch.dtype:
    """The type of the module's own parameters.

    ZeRO keeps fp32 master weights beside them. Without ZeRO, DeepSpeed has no bf16 with fp32
    gradient accumulation: there the parameters are the master weights, the computation is autocast.
    """
    return torch.float32 if config.trainer.zero_stage == 0 else dtype


def load_model(directory: Path, dtype: torch.dtype) -> Any:
    """The model without dropout: the ratio of eq. 9 must be 1 before the first update."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    for module in model.modules():
        for name in ("p", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def _recompute_layers(model: Any) -> None:
    """Keeps a layer's input only; backward computes the rest of the layer again."""
    if not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"trainer.gradient_checkpointing: {type(model).__name__} does not support it: set it "
            f"to false"
        )
    # There is no dropout, so no random state to restore.
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})


def _check_names(model: Any, layout: ModelLayout) -> None:
    unknown = layout.tensor_names - set(model.state_dict())
    if unknown:
        raise ConfigError(
            f"model.path: {layout.directory} stores tensor {min(unknown)} ({len(unknown)} such), "
            f"which {type(model).__name__} does not have, so it could not be published: save the "
            f"model anew with transformers' save_pretrained"
        )
