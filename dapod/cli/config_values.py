"""Every value a run or an evaluation will have, one line each, and its source: `dapod config show`.

    algorithm.clip_high = 0.28   # preset dapo (DAPO sections 3.1 and 4.1: clip-higher)

Later wins: default, preset, file, --set.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from dapod import config as configuration
from dapod.config import RunConfig, presets
from dapod.config.load import read


def effective(file: Path, overrides: Sequence[str]) -> list[str]:
    """The lines, aligned. Raises `ConfigError`."""
    config = configuration.load_any(file, overrides)
    preset = config.algorithm.preset if isinstance(config, RunConfig) else None
    origins = dict(_origins(file, overrides, preset))
    values = dict(_flat(config.model_dump(mode="json", exclude_none=True)))
    left = {key: f"{key} = {_toml(value)}" for key, value in values.items()}
    width = max(map(len, left.values()))
    return [f"{text.ljust(width)}   # {origins.get(key, 'default')}" for key, text in left.items()]


def _origins(file: Path, overrides: Sequence[str], preset: str | None) -> Iterator[tuple[str, str]]:
    """(section.key, where its value comes from); a later pair replaces an earlier one."""
    if preset is not None:
        for key, setting in presets.PRESETS[preset].items():
            yield key, f"preset {preset} ({setting.source})"
    for key, _ in _flat(read(file)):
        yield key, str(file)
    for override in overrides:
        yield override.partition("=")[0].strip(), "--set"


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(section.key, value), through tables of tables."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", found) for inner, found in _flat(value))
        else:
            yield key, value


def _toml(value: Any) -> str:
    if isinstance(value, list):  # tomli_w gives each item a line
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()
