"""The run directory: whose it is, whether a run may begin or go on in it, and one runner at a time.

    config.toml  run.json  steps.jsonl  evaluations.jsonl  summary.json  curves.png
    services.json (while it runs)  logs/  policies/  checkpoints/  valkey/

`choose` only looks; nothing is written before `RunDirectory.open`.
"""

import json
import secrets
import shutil
import time
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from dapod.cli.lock import locked
from dapod.config import ConfigError, RunConfig
from dapod.model_files import read_json


@dataclass(frozen=True, kw_only=True)
class RunDirectory:
    """One run's place, and the identity it has from its first start to its last."""

    path: Path
    run_id: str
    resumed: bool

    @property
    def steps_file(self) -> Path:
        return self.path / "steps.jsonl"

    @property
    def evaluations_file(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def open(self, config: RunConfig, redis: str) -> None:
        """Makes the directory and writes down what runs in it; `redis` without its password."""
        for name in ("logs", "policies", "checkpoints", "valkey"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        (self.path / "config.toml").write_text(_toml(config), encoding="utf-8")
        if not self.resumed:
            body = {
                "run_id": self.run_id,
                "config_digest": config.digest(),
                "redis": redis,
                "created_unix": time.time(),
            }
            (self.path / "run.json").write_text(json.dumps(body, indent=1) + "\n")

    @contextmanager
    def gone_when_refused(self) -> Iterator[None]:
        """Around a run: one that a service refuses before its first step leaves no directory.

        Nothing of it could be gone on with, and the next start would have to be given another name.
        """
        try:
            yield
        except ConfigError:
            if not self.resumed and not self.steps_file.exists():
                shutil.rmtree(self.path)
            raise

    def locked(self) -> AbstractContextManager[int]:
        """Holds the directory; gives the lock's descriptor. Raises `ConfigError`."""
        return locked(self.path, "run")


def choose(
    config: RunConfig, *, given: Path | None, resume: bool, redis: str, base: Path = Path("runs")
) -> RunDirectory:
    """The directory of this run. Raises `ConfigError` when it may not be used."""
    if given is None:
        path = _newest(base / config.run.name) if resume else _unused(base / config.run.name)
    else:
        path = given
    path = path.resolve()
    if not _holds_run(path):
        if resume:
            raise ConfigError(f"{path} holds no run to go on with: leave out --resume to start one")
        if path.exists() and (not path.is_dir() or not _is_empty(path)):
            raise ConfigError(
                f"{path} is not a run directory and not empty: choose another --run-dir"
            )
        return RunDirectory(path=path, run_id=_new_id(config), resumed=False)
    known = read_json(path / "run.json")
    _check_config(config, path, known)
    if not resume:
        raise ConfigError(
            f"{path} already holds a run: pass --resume to go on with it, "
            f"or choose another --run-dir"
        )
    _check_redis(path, known, redis)
    _check_steps_left(config, path)
    return RunDirectory(path=path, run_id=str(known["run_id"]), resumed=True)


def check_ranks(config: RunConfig, path: Path) -> None:
    """A ZeRO checkpoint can only be loaded by as many ranks as wrote it."""
    for file in sorted((path / "checkpoints").glob("step-*/checkpoint.json"))[-1:]:
        checkpoint = read_json(file)
        for key, wanted in (
            ("ranks", config.trainer.ranks),
            ("zero_stage", config.trainer.zero_stage),
        ):
            if checkpoint.get(key, wanted) != wanted:
                raise ConfigError(
                    f"{file.parent} was written with trainer.{key} = {checkpoint[key]} and cannot "
                    f"be loaded with {wanted}: set trainer.{key} = {checkpoint[key]}"
                )


def _check_config(config: RunConfig, path: Path, known: dict[str, Any]) -> None:
    if known.get("config_digest") == config.digest():
        return
    changes = ", ".join(_changes(config, path / "config.toml")) or "its digest differs"
    raise ConfigError(
        f"{path} belongs to another config ({changes}): choose another --run-dir, "
        f"or run that one with its own config.toml"
    )


def _changes(config: RunConfig, file: Path) -> Iterator[str]:
    """What differs of all that changes what is learned."""
    try:
        theirs = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for section, ours in config.model_dump(mode="json", exclude={"evaluation"}).items():
        for key, value in ours.items():
            old = theirs.get(section, {}).get(key)
            counts = (
                section in ("data", "sampling", "algorithm", "optimiser", "model") or key == "seed"
            )
            if key == "preset":
                continue  # only a name; what it set stands among the other keys
            if key == "path" and old is not None:
                old, value = Path(old).name, Path(value).name
            if counts and old != value:
                yield f"{section}.{key} is {old!r} there and {value!r} here"


def _toml(config: RunConfig) -> str:
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _check_redis(path: Path, known: dict[str, Any], redis: str) -> None:
    if known.get("redis") != redis:
        raise ConfigError(
            f"{path} keeps its state in redis = {known.get('redis')!r}, not {redis!r}: "
            f"go on with the same --redis-url"
        )


def _check_steps_left(config: RunConfig, path: Path) -> None:
    """A run is over when it wrote its summary; one killed just before that has work to do."""
    summary = path / "summary.json"
    if not summary.is_file():
        return
    trained = read_json(summary).get("steps")
    if isinstance(trained, int) and trained >= config.run.steps:
        raise ConfigError(
            f"{path} has trained its {trained} steps: pass --steps with a larger number to go on"
        )


def _holds_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def _is_empty(path: Path) -> bool:
    """Nothing in it but perhaps the lock of a start that was refused."""
    return all(entry.name == ".lock" for entry in path.iterdir())


def _numbered(first: Path) -> Iterator[Path]:
    yield first
    for number in range(2, 10_000):
        yield first.with_name(f"{first.name}-{number}")


def _unused(first: Path) -> Path:
    return next(path for path in _numbered(first) if not path.exists() or _is_empty_dir(path))


def _newest(first: Path) -> Path:
    """The last of the numbered directories; the first when there is none."""
    newest = first
    for path in _numbered(first):
        if not path.exists():
            return newest
        newest = path
    return newest


def _is_empty_dir(path: Path) -> bool:
    return path.is_dir() and _is_empty(path)


def _new_id(config: RunConfig) -> str:
    return f"{config.run.name}-{secrets.token_hex(3)}"
