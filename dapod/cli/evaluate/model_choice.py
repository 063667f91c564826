"""Which model is meant: a directory with one, or a run's newest policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dapod.cli.summary import newest_policy
from dapod.config import ConfigError
from dapod.model_files import check_files, fingerprint


@dataclass(frozen=True, kw_only=True)
class ChosenModel:
    """A directory in the Hugging Face layout."""

    directory: Path
    run_dir: Path | None
    """The run whose policy it is."""
    fingerprint: str

    @property
    def label(self) -> str:
        """Names it in the output directory's name."""
        return self.directory.name

    def __str__(self) -> str:
        if self.run_dir is None:
            return str(self.directory)
        return f"policy {self.directory.name} of {self.run_dir}"


def is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def choose(path: Path) -> ChosenModel:
    """Raises `ConfigError` when there is no model."""
    if not path.is_dir():
        raise ConfigError(
            f"there is no model: no directory {path} (the quickstart's model: dapod model fetch)"
        )
    # A link like policies/v12 may point elsewhere tomorrow.
    directory = (_policy(path) if is_run(path) else path).resolve()
    if not (directory / "config.json").is_file():
        raise ConfigError(
            f"{path} is neither a run directory (no run.json) nor a model (no config.json)"
        )
    check_files(directory)
    return ChosenModel(
        directory=directory, run_dir=_run_of(directory), fingerprint=fingerprint(directory)
    )


def _policy(run: Path) -> Path:
    newest = newest_policy(run)
    if newest is None:
        raise ConfigError(f"the run {run} has published no policy yet: {run / 'policies'} is empty")
    return Path(newest)


def _run_of(directory: Path) -> Path | None:
    """The run directory, when it is one of a run's policies."""
    run = directory.parent.parent
    return run if directory.parent.name == "policies" and is_run(run) else None
