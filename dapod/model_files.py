"""A model directory as files: what must be there before a heavy library opens it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from dapod.config import ConfigError, RunConfig


def check_model(config: RunConfig) -> None:
    """Raises `ConfigError` when the directory cannot be trained or the context is too short."""
    directory = Path(config.model.path)
    if not directory.is_dir():
        raise ConfigError(
            f"model.path: {directory} is not a directory "
            "(the quickstart's model: dapod model fetch)"
        )
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(
            f"model.path: {directory} holds no .safetensors file; save the model as one"
        )
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (directory / name).is_file():
            raise ConfigError(f"model.path: {directory} has no {name}")
    context = _context(read_json(directory / "config.json"))
    if context is not None and config.context_tokens > context:
        raise ConfigError(
            "sampling.max_prompt_tokens + sampling.max_response_tokens = "
            f"{config.context_tokens}, but the model's context is {context} tokens: "
            "lower one of them"
        )


def check_disk(config: RunConfig, directory: Path) -> None:
    """Raises `ConfigError` unless `directory`'s disk has room for two policies, and two more that
    evaluations may keep."""
    word, count = ("two", 2) if config.evaluation is None else ("four", 4)
    existing = next(p for p in (directory, *directory.resolve().parents) if p.is_dir())
    size = sum(file.stat().st_size for file in Path(config.model.path).glob("*.safetensors"))
    free = shutil.disk_usage(existing).free
    if free < count * size:
        raise ConfigError(
            f"{existing} has {free >> 20} MiB free, {word} policies take {count * size >> 20} MiB: "
            f"free some room or choose another directory"
        )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; raises `ConfigError` when it is none."""
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{file} is not a JSON object")
    return value


def _context(model: dict[str, Any]) -> int | None:
    length = model.get("max_position_embeddings")
    return length if isinstance(length, int) else None
