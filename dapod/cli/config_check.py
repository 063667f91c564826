"""`dapod config check`: the mistakes that a start would end with, or what follows from the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dapod import config as configuration
from dapod.cli import inputs
from dapod.config import EvalConfig, RunConfig


def check(file: Path, overrides: Sequence[str]) -> list[str]:
    """Lines for people. Raises `ConfigError`.

    What is a start's alone is not looked at: run directory, disk, ports, Redis.
    """
    config = configuration.load_any(file, overrides)
    if isinstance(config, EvalConfig):
        return [f"{file} is right: {_evaluation(config)}", *inputs.of_evaluation(config)]
    return [f"{file} is right: {_run(config)}", *_sizes(config), *inputs.of_run(config)]


def _run(config: RunConfig) -> str:
    return f"run {config.run.name}, digest {config.digest()}"


def _sizes(config: RunConfig) -> list[str]:
    sizes = config.algorithm
    return [
        f"{config.run.steps} steps of {sizes.prompts_per_step} groups of {sizes.group_size} "
        f"rollouts, {config.updates_per_step} update(s) each",
        f"a rollout is at most {config.tokens_per_rollout} tokens, a group at most "
        f"{config.group_bytes / 1024:.0f} KiB; payloads of {config.live_payload_steps} steps "
        f"live at once",
    ]


def _evaluation(config: EvalConfig) -> str:
    sampling, at = config.sampling, ", ".join(f"pass@{k}" for k in config.pass_at)
    return (
        f"an evaluation with {config.evaluation.samples} answers to each problem, at most "
        f"{sampling.max_response_tokens} tokens each, temperature {sampling.temperature:g}, "
        f"top_p {sampling.top_p:g}; {at}"
    )
