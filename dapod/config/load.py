"""A TOML file and `--set` overrides -> a checked config, or one sentence for each mistake."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from dapod.config.eval_config import EvalConfig
from dapod.config.run_config import RunConfig
from dapod.config.sections import Section
from dapod.config.source import LocalSource, parse_source

Kind = TypeVar("Kind", bound=Section)
"""A whole file's type: `RunConfig` or another root."""


class ConfigError(ValueError):
    """What the user gave cannot work; the message says what to change. Exit status 2."""


@contextmanager
def within(table: str) -> Iterator[None]:
    """What is said of a table's key is said of the key of the table it lies in."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        raise ConfigError(f"{table}.{text}" if text.startswith("data.") else text) from error


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads and checks a config file; `overrides` are `section.key=value` with TOML values.

    Raises `ConfigError` with one sentence for each mistake.
    """
    return parse(_document(path, overrides), str(path))


def load_any(path: Path, overrides: Sequence[str] = ()) -> RunConfig | EvalConfig:
    """The same for a file of either kind: one without any table that only runs have is of an
    evaluation."""
    if read(path).keys() & (RunConfig.model_fields.keys() - EvalConfig.model_fields.keys()):
        return load(path, overrides)
    source = f"{path} (of an evaluation: it has no [run])"
    return parse_as(EvalConfig, _document(path, overrides), source)


def _document(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The TOML document with its changes and with whole paths, unchecked."""
    raw = read(path)
    for override in overrides:
        apply(raw, override)
    resolve_paths(raw, path.resolve().parent)
    return raw


def read(path: Path) -> dict[str, Any]:
    """The TOML document as it stands, unchecked. `ConfigError` when it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise ConfigError(f"{path} line {line} is not UTF-8: save the file as UTF-8") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def parse(raw: dict[str, Any], source: str) -> RunConfig:
    """Checks a parsed TOML document; `source` stands in error messages."""
    return parse_as(RunConfig, raw, source)


def parse_as(kind: type[Kind], raw: dict[str, Any], source: str) -> Kind:
    """The same for a file of another kind."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        lines = [_sentence(kind, dict(detail)) for detail in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from error


def apply(raw: dict[str, Any], override: str) -> None:
    """Changes one setting of the document, written as `section.key=value`."""
    key, separator, value = override.partition("=")
    *tables, name = key.strip().split(".")
    if not separator or not tables or not all([*tables, name]):
        raise ConfigError(f"--set {override}: write it as section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    table = raw
    for section in tables:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {section} is not a section")
    table[name] = parsed


def resolve_paths(raw: dict[str, Any], base: Path) -> None:
    """A relative model or data path means beside the config file, wherever one stands."""
    evaluation = raw.get("evaluation")
    problems = evaluation.get("data") if isinstance(evaluation, dict) else None
    model = raw.get("model")
    for table in (model, raw.get("data"), problems):
        if isinstance(table, dict) and isinstance(table.get("path"), str):
            if table is not model and not is_local(table["path"]):
                continue
            table["path"] = str((base / table["path"]).resolve())


def is_local(path: str) -> bool:
    """Whether `data.path` names files of this machine."""
    try:
        return isinstance(parse_source(path), LocalSource)
    except ValueError:
        return False  # said where the table is checked


def _sentence(kind: type[Section], detail: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key {where}{_nearest(kind, detail['loc'])}"
    if detail["type"] == "missing":
        return f"{where} is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "value_error":
        # A table's own rules name its keys by it alone, wherever it lies.
        outer, dot, table = where.rpartition(".")
        return f"{outer}{dot}{message}" if message.startswith(f"{table}.") else message
    if not where:
        return message
    return f"{where} = {detail['input']!r}: {message[0].lower()}{message[1:]}"


def _nearest(kind: type[Section], location: tuple[Any, ...]) -> str:
    known = _section(kind, location[:-1]).model_fields
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    prefix = "".join(f"{part}." for part in location[:-1])
    if close:
        return f" (did you mean {prefix}{close[0]}?)"
    return f" (known here: {', '.join(sorted(known))})"


def _section(kind: type[Section], location: tuple[Any, ...]) -> type[Section]:
    section = kind
    for part in location:
        annotation = section.model_fields[str(part)].annotation
        # A table that may be left out is `Section | None`.
        (section,) = (
            one
            for one in (annotation, *get_args(annotation))
            if isinstance(one, type) and issubclass(one, Section)
        )
    return section
