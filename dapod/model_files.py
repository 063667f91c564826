"""A model directory as files: what must be there before a heavy library opens it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from dapod.config import ConfigError, RunConfig
from dapod.policy_store import PolicyCorrupt, read_tensor_entries

_WHOLE = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PLACES = 64
_PLACE_BYTES = 4096


def check_model(config: RunConfig) -> None:
    """Raises `ConfigError` when the directory cannot be trained or the context is too short."""
    directory = Path(config.model.path)
    check_files(directory)
    context = context_tokens(directory)
    if context is not None and config.context_tokens > context:
        raise ConfigError(
            "sampling.max_prompt_tokens + sampling.max_response_tokens = "
            f"{config.context_tokens}, but the model's context is {context} tokens: "
            "lower one of them"
        )


def check_files(directory: Path) -> None:
    """Raises `ConfigError` unless it is a model in the Hugging Face layout."""
    if not directory.is_dir():
        raise ConfigError(
            f"model.path: {directory} is not a directory "
            "(the quickstart's model: dapod model fetch)"
        )
    _check_weights(directory)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (directory / name).is_file():
            raise ConfigError(f"model.path: {directory} has no {name}")


def _check_weights(directory: Path) -> None:
    """Every file that the index names must be there, and every file as long as its header says.

    A copy under way, shards that were left out and a pointer of Git LFS all end in `.safetensors`.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"model.path: {directory} holds no .safetensors file; save the model as one"
        )
    for name in _weight_names(directory):
        if not (directory / name).is_file():
            raise ConfigError(
                f"model.path: {directory} has no {name}, but {_INDEX} names it: copy it there too"
            )
    for file in files:
        try:
            read_tensor_entries(file)
        except (PolicyCorrupt, OSError) as error:
            raise ConfigError(
                f"model.path: {error}: copy or download it again (after git clone: git lfs pull)"
            ) from error


def _weight_names(directory: Path) -> list[str]:
    """The files that transformers and vLLM open: those of the index, or a small model's one."""
    index = directory / _INDEX
    if not index.is_file():
        if (directory / _WEIGHTS).is_file():
            return [_WEIGHTS]
        raise ConfigError(
            f"model.path: {directory} has neither {_WEIGHTS} nor {_INDEX}: copy what is missing, "
            f"or save the model anew"
        )
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict):
        raise ConfigError(f"model.path: {index} has no weight_map: copy it again")
    return sorted({str(name) for name in files.values()})


def fingerprint(directory: Path) -> str:
    """Hex digest that tells a model from another, in a moment whatever its size.

    Of the settings and the tokenizer all is read, of the weights the headers and a few places of
    each file: training changes nearly every number.
    """
    digest = hashlib.sha256()
    for name in _WHOLE:
        if (directory / name).is_file():
            digest.update((directory / name).read_bytes())
    for file in sorted(directory.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as stream:
            for place in range(_PLACES):
                stream.seek(size * place // _PLACES)
                digest.update(stream.read(_PLACE_BYTES))
    return digest.hexdigest()[:16]


def check_disk(config: RunConfig, directory: Path) -> None:
    """Raises `ConfigError` unless `directory`'s disk has room for two policies, and two more that
    evaluations may keep."""
    word, count = ("two", 2) if config.evaluation is None else ("four", 4)
    existing = next(p for p in (directory, *directory.resolve().parents) if p.is_dir())
    size = model_bytes(Path(config.model.path))
    free = shutil.disk_usage(existing).free
    if free < count * size:
        raise ConfigError(
            f"{existing} has {free >> 20} MiB free, {word} policies take {count * size >> 20} MiB: "
            f"free some room or choose another directory"
        )


def model_bytes(directory: Path) -> int:
    """Size of all weights."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; raises `ConfigError` when it is none."""
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{file} is not a JSON object")
    return value


def context_tokens(directory: Path) -> int | None:
    """The longest text the model takes; None when its config does not say."""
    length = read_json(directory / "config.json").get("max_position_embeddings")
    return length if isinstance(length, int) else None
