"""What was asked for: a TOML file, a run's own tables or nothing, with the flags on top."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dapod.cli.evaluate import model_choice
from dapod.cli.evaluate.model_choice import ChosenModel
from dapod.config import ConfigError, EvalConfig, Model
from dapod.config.load import apply, is_local, parse_as, resolve_paths
from dapod.config.load import read as read_toml

FROM_A_RUN: Mapping[str, Sequence[str]] = {
    "data": (),
    "sampling": ("max_response_tokens",),
    "rollout": (),
    "reward": (),
}
"""Tables (all keys, or those named) that a run directory brings; temperature and top_p are for
training there."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The command line, unchecked."""

    config: Path | None = None
    model: Path | None = None
    data: str | None = None
    out: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    """Values by `section.key`, as text: flags that stand for one setting."""
    overrides: Sequence[str] = ()
    """--set, in order; they win."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Checked: what to evaluate and how."""

    config: EvalConfig
    """`model.path` is the chosen model's directory."""
    model: ChosenModel
    out: Path
    """The output directory."""


def read(flags: Flags) -> Request:
    """Raises `ConfigError` for the first thing that cannot work."""
    raw, source, base = _base(flags)
    if flags.model is not None:
        model_choice.choose(flags.model)  # of all that may be missing this is said first
        raw.setdefault("model", {})["path"] = str(flags.model.resolve())
    if flags.data is not None:
        raw.setdefault("data", {})["path"] = _absolute(flags.data)
    for key, value in flags.settings.items():
        apply(raw, f"{key}={value}")
    for override in flags.overrides:
        apply(raw, override)
    resolve_paths(raw, base)
    config = _checked(raw, source)
    model = model_choice.choose(Path(config.model.path))
    config = config.model_copy(update={"model": Model(path=str(model.directory))})
    return Request(config=config, model=model, out=(flags.out or _out(config, model)).resolve())


def _checked(raw: dict[str, Any], source: str) -> EvalConfig:
    if "model" not in raw:
        raise ConfigError("which model? pass --model with a model's or a run's directory")
    if "data" not in raw:
        raise ConfigError("which problems? pass --data with a file, or a CONFIG that names one")
    raw.setdefault("sampling", {})  # so that the key that is missing is named
    return parse_as(EvalConfig, raw, source)


def _base(flags: Flags) -> tuple[dict[str, Any], str, Path]:
    """The tables that flags change, what to call them, and where relative paths count from."""
    if flags.config is not None:
        return read_toml(flags.config), str(flags.config), flags.config.resolve().parent
    if flags.model is not None and model_choice.is_run(flags.model):
        file = flags.model / "config.toml"
        return _of_run(read_toml(file)), str(file), file.resolve().parent
    return {}, "the command line", Path.cwd()


def _of_run(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        section: {key: raw[section][key] for key in keys or raw[section]}
        for section, keys in FROM_A_RUN.items()
        if section in raw
    }


def _absolute(data: str) -> str:
    """A path counts from the working directory; a name of a hub or a generator stays."""
    return str(Path(data).resolve()) if is_local(data) else data


def _out(config: EvalConfig, model: ChosenModel) -> Path:
    """evaluations/<model>-<name>, in the run directory for a run's policy."""
    name = config.evaluation.name or Path(config.data.path).stem
    base = model.run_dir or Path()
    named = re.sub(r"[^A-Za-z0-9._]+", "-", f"{model.label}-{name}").strip("-")
    return base / "evaluations" / named
