"""Checkpoints at step boundaries: everything the trainer needs to go on as if nothing had happened.

    checkpoints/.step-00000004.tmp/   every rank saves and syncs its part
    checkpoints/step-00000004/        renamed after checkpoint.json: whole or invisible

The directory is on storage that all nodes share. Rank 0 makes it, renames it, removes old ones and
says which is the newest: a network file system may show another node yesterday's directory for a
minute.

`checkpoint.json` holds the ledger of all steps so far: the trainer is the second witness of who was
trained. DeepSpeed's optimiser files beside it are pickle: keep them on a volume that only the
trainer mounts. This module knows files and JSON, not torch, so a start that cannot work is refused
before torch is loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dapod.config import ConfigError, RunConfig
from dapod.ledger import LedgerEntry

RECORD = "checkpoint.json"
KEEP = 2
MODELS_PER_CHECKPOINT = 7
"""bf16 weights, fp32 master weights and two fp32 moments, in units of the bf16 weights."""
SIGHT_SECONDS = 120.0
"""Twice as long as an NFS client keeps a directory (acdirmax, nfs(5))."""
_LOOK_UP_SECONDS = 0.5
_NAME = re.compile(r"^step-(\d{8,})$")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The record of one checkpoint."""

    step: int
    """Steps 0..step-1 are trained; the weights are version `step`."""
    ranks: int
    zero_stage: int
    config_digest: str
    lineage: str
    """Of the trainer that wrote it; versions it published later are superseded when this is
    resumed."""
    ledger: tuple[LedgerEntry, ...]


class CheckpointStore:
    """The `checkpoints` directory of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, step: int) -> Path:
        return self.root / f"step-{step:08d}"

    def beside(self, step: int) -> Path:
        """Where a checkpoint is written before it is visible."""
        return self.root / f".step-{step:08d}.tmp"

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint."""
        steps = self._steps()
        return _read(self.path(steps[-1]) / RECORD) if steps else None

    def await_finished(self, step: int, waiting: Callable[[str], None]) -> Checkpoint:
        """The checkpoint of `step`, which rank 0 has seen. Raises `ConfigError`."""
        record = self.path(step) / RECORD
        await_sight(record, waiting)
        return _read(record)

    def await_begun(self, step: int, waiting: Callable[[str], None]) -> None:
        """Returns when the directory that rank 0 made is here. Raises `ConfigError`."""
        await_sight(self.beside(step), waiting)

    def begin(self, step: int) -> None:
        """Makes an empty directory for the ranks to save into; what a crash left is removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.sweep()
        self.beside(step).mkdir()

    def sweep(self) -> None:
        """Removes what a crash left half written. Only for rank 0 and its node."""
        for leftover in self.root.glob(".step-*"):
            shutil.rmtree(leftover)

    def finish(self, checkpoint: Checkpoint) -> None:
        """Makes a saved checkpoint visible and removes all but the newest ones."""
        beside, final = self.beside(checkpoint.step), self.path(checkpoint.step)
        (beside / RECORD).write_text(json.dumps(asdict(checkpoint)) + "\n")
        sync_tree(beside)
        beside.rename(final)
        _sync(self.root)
        for step in self._steps()[:-KEEP]:
            shutil.rmtree(self.path(step))

    def _steps(self) -> list[int]:
        if not self.root.is_dir():
            return []
        matches = (_NAME.match(entry.name) for entry in self.root.iterdir())
        return sorted(int(m[1]) for m in matches if m)


def check_resumable(checkpoint: Checkpoint, config: RunConfig, ranks: int) -> None:
    """Raises `ConfigError` when `checkpoint` cannot be loaded by this start."""
    if checkpoint.config_digest != config.digest():
        raise ConfigError(
            "the run directory holds a checkpoint of another config (model, data, sampling, "
            "algorithm, optimiser or seed differ): choose another run directory or go back to the "
            "old settings"
        )
    if checkpoint.ranks != ranks:
        raise ConfigError(
            f"the checkpoint of step {checkpoint.step} was written by {checkpoint.ranks} ranks and "
            f"this start has {ranks}; a ZeRO checkpoint cannot change its number of ranks: set "
            f"trainer.ranks={checkpoint.ranks} or choose another run directory"
        )
    if checkpoint.zero_stage != config.trainer.zero_stage:
        raise ConfigError(
            f"the checkpoint of step {checkpoint.step} was written with trainer.zero_stage="
            f"{checkpoint.zero_stage} and this start has {config.trainer.zero_stage}: set it back "
            f"or choose another run directory"
        )


def await_sight(
    path: Path, waiting: Callable[[str], None], *, seconds: float = SIGHT_SECONDS
) -> None:
    """Returns when a path that is on the shared storage is seen here. Raises `ConfigError`."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{path} is there for rank 0 and not on this node: put DAPOD_RUN_DIR on storage "
                f"that all nodes of the trainer share"
            )
        waiting(f"waiting for {path} to be seen on this node")
        time.sleep(_LOOK_UP_SECONDS)


def sync_tree(directory: Path) -> None:
    """fsync of every file and directory under `directory`, and of itself."""
    for entry in directory.rglob("*"):
        _sync(entry)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(file: Path) -> Checkpoint:
    try:
        raw = json.loads(file.read_text())
        ledger = tuple(_entry(entry) for entry in raw.pop("ledger"))
        return Checkpoint(**raw, ledger=ledger)
    except (OSError, ValueError, KeyError, TypeError) as error:
        # An earlier checkpoint would be refused: the groups between the two were freed.
        raise ConfigError(
            f"cannot read {file} ({error}): start a new run (another run.name or --run-dir) with "
            f"model.path = policies/v<N>, the newest of this run"
        ) from error


def _entry(raw: dict[str, Any]) -> LedgerEntry:
    return LedgerEntry(step=raw["step"], group_ids=tuple(raw["group_ids"]), digest=raw["digest"])
