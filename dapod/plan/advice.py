"""What to change when a trainer GPU is too small: the first settings that really make it fit.

Each candidate is computed like the plan itself, first alone, then on top of those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dapod.config import RunConfig
from dapod.plan.trainer_memory import TrainerMemory

Compute = Callable[[RunConfig], TrainerMemory]
Settings = Mapping[str, Any]


def advice(config: RunConfig, compute: Compute) -> str:
    """A clause that says what to set, or that no setting helps."""
    candidates = list(_candidates(config))
    for settings in (*candidates, *_growing(candidates)):
        if compute(_with(config, settings)).fits:
            return f"set {_spelt(_without_idle(settings, config, compute))}"
    everything = list(_growing(candidates))[-1] if candidates else {}
    least = compute(_with(config, everything))
    needed = max(least.bytes, least.loading_bytes)
    return (
        f"even with {_spelt(everything) or 'these settings'} it needs {needed / 2**30:.1f} GiB: "
        f"choose GPUs with more memory, more trainer.ranks, a smaller model or a lower "
        f"sampling.max_response_tokens"
    )


def _candidates(config: RunConfig) -> Iterator[Settings]:
    """The cheapest in time first."""
    trainer = config.trainer
    if trainer.tokens_per_micro_batch > config.tokens_per_rollout:
        yield {"tokens_per_micro_batch": config.tokens_per_rollout}
    if trainer.ranks > 1 and trainer.zero_stage < 3:
        yield {"zero_stage": 3}
    if not trainer.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    if not trainer.offload_optimiser:
        yield {"offload_optimiser": True, "zero_stage": max(2, trainer.zero_stage)}


def _growing(candidates: list[Settings]) -> Iterator[Settings]:
    together: dict[str, Any] = {}
    for settings in candidates:
        together = {**settings, **together}
        yield together


def _without_idle(settings: Settings, config: RunConfig, compute: Compute) -> Settings:
    """Leaves out what the others make unnecessary."""
    kept = dict(settings)
    for name in settings:
        fewer = {key: value for key, value in kept.items() if key != name}
        if fewer and compute(_with(config, fewer)).fits:
            kept = fewer
    return kept


def _with(config: RunConfig, settings: Settings) -> RunConfig:
    return config.model_copy(update={"trainer": config.trainer.model_copy(update=dict(settings))})


def _spelt(settings: Settings) -> str:
    return " and ".join(
        f"trainer.{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in settings.items()
    )
