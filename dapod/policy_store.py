"""Policy versions on shared storage. A version is whole or invisible.

    publish:  write into .v3-9f2c.tmp/ -> sync files -> manifest.json -> sync -> rename to v3-9f2c/
    verify:   manifest.json -> every tensor's checksum -> a directory that can be loaded

The trainer is the only writer. Each version is a directory in the Hugging Face layout (safetensors,
config, tokenizer) with a manifest: size and SHA-256 of every tensor and of every other file. `v3`
is a link to the newest lineage of version 3, for people. The store knows files, not tensors: it
imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapod.types import PolicyVersion

MANIFEST = "manifest.json"
_NAME = re.compile(r"^v(\d+)-([0-9a-z]+)$")
_CHUNK = 1 << 22
_HEADER_BYTES = 100_000_000
"""As many as safetensors itself reads: a damaged length must not fill the memory."""


class PolicyMissing(FileNotFoundError):
    """The version was never published here, or has been pruned."""


class PolicyCorrupt(ValueError):
    """A file or tensor differs from the manifest; the message names it."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor as it stands in a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """First byte in the file."""
    end: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a version consists of."""

    policy: PolicyVersion
    tensors: dict[str, str]
    """Tensor name -> SHA-256 of `dtype shape bytes`."""
    files: dict[str, str]
    """Every file that holds no tensors -> SHA-256."""
    bytes: int
    """Size of all files."""


class PolicyStore:
    """The directory that holds all published versions."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, policy: PolicyVersion) -> Path:
        """Where `policy` is, or would be."""
        return self.root / str(policy)

    def publish(self, policy: PolicyVersion, write: Callable[[Path], None]) -> Manifest:
        """Lets `write(directory)` lay down the files, then makes them visible at once.

        A version that is already there is left alone: publishing twice is harmless.
        """
        if self.path(policy).exists():
            return self.manifest(policy)
        self.root.mkdir(parents=True, exist_ok=True)
        beside = self.root / f".{policy}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        write(beside)
        manifest = _describe(policy, beside)
        _write_manifest(beside / MANIFEST, manifest)
        for file in beside.iterdir():
            # safetensors writes 0600, but pods of another user read what is published.
            file.chmod(0o644)
            _sync(file)
        _sync(beside)
        beside.rename(self.path(policy))
        self._link(policy)
        _sync(self.root)
        return manifest

    def manifest(self, policy: PolicyVersion) -> Manifest:
        """Raises `PolicyMissing`, or `PolicyCorrupt` when it cannot be read."""
        file = self.path(policy) / MANIFEST
        try:
            raw = json.loads(file.read_text())
            return Manifest(
                policy=PolicyVersion(number=raw["number"], lineage=raw["lineage"]),
                tensors=dict(raw["tensors"]),
                files=dict(raw["files"]),
                bytes=raw["bytes"],
            )
        except FileNotFoundError as error:
            raise PolicyMissing(f"no policy {policy} in {self.root}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise PolicyCorrupt(f"{file} cannot be read: {error}") from error

    def verify(self, policy: PolicyVersion) -> Path:
        """Recomputes every checksum and returns the directory.

        Raises `PolicyMissing` or `PolicyCorrupt`.
        """
        manifest = self.manifest(policy)
        if manifest.policy != policy:
            raise PolicyCorrupt(f"{self.path(policy)} says it is {manifest.policy}")
        try:
            found = _describe(policy, self.path(policy))
        except FileNotFoundError as error:
            raise PolicyMissing(f"{policy} was pruned while it was read") from error
        _compare(str(policy), "tensor", manifest.tensors, found.tensors)
        _compare(str(policy), "file", manifest.files, found.files)
        return self.path(policy)

    def versions(self) -> list[PolicyVersion]:
        """All visible versions, by number."""
        if not self.root.is_dir():
            return []
        matches = (
            _NAME.match(entry.name) for entry in self.root.iterdir() if not entry.is_symlink()
        )
        return sorted(PolicyVersion(number=int(m[1]), lineage=m[2]) for m in matches if m)

    def prune(self, *, keep: Collection[PolicyVersion], newest: int) -> list[PolicyVersion]:
        """Removes all versions but `keep` and the `newest` published last; returns the removed."""
        published = sorted(
            self.versions(), key=lambda p: (self.path(p) / MANIFEST).stat().st_mtime_ns
        )
        removed = [p for p in published[: max(0, len(published) - newest)] if p not in keep]
        for policy in removed:
            self._remove(policy)
        return removed

    def sweep(self) -> None:
        """Removes what a crashed writer left half done. Only for the writer, at its start."""
        for leftover in (*self.root.glob(".*.tmp"), *self.root.glob(".*.gone")):
            shutil.rmtree(leftover)

    def _remove(self, policy: PolicyVersion) -> None:
        link = self.root / f"v{policy.number}"
        if link.is_symlink() and os.readlink(link) == str(policy):
            link.unlink()
        # Renamed first, so that a half-removed version is never visible.
        gone = self.root / f".{policy}.gone"
        self.path(policy).rename(gone)
        shutil.rmtree(gone)

    def _link(self, policy: PolicyVersion) -> None:
        beside = self.root / f".v{policy.number}.link"
        beside.unlink(missing_ok=True)
        beside.symlink_to(str(policy))
        beside.replace(self.root / f"v{policy.number}")


def read_tensor_entries(file: Path) -> list[TensorEntry]:
    """The header of a safetensors file, which must describe the file to its last byte.

    Raises `PolicyCorrupt`.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        begin = 8 + int.from_bytes(stream.read(8), "little")
        if begin > min(size, _HEADER_BYTES):
            raise PolicyCorrupt(f"{file} is not a safetensors file")
        try:
            header = json.loads(stream.read(begin - 8))
            entries = [_entry(name, raw, begin) for name, raw in _tensors(header)]
        except (ValueError, RecursionError) as error:
            raise PolicyCorrupt(f"{file} has no readable safetensors header: {error}") from error
    end = max([begin, *(entry.end for entry in entries)])
    if end != size:
        raise PolicyCorrupt(f"{file} has {size} bytes, its header describes {end}")
    return entries


def _tensors(header: Any) -> list[tuple[str, Any]]:
    if not isinstance(header, dict):
        raise ValueError("it is not a JSON object")
    return [(name, raw) for name, raw in header.items() if name != "__metadata__"]


def _entry(name: str, raw: Any, first: int) -> TensorEntry:
    """Raises `ValueError` for anything else than safetensors writes."""
    match raw:
        case {
            "dtype": str(dtype),
            "shape": [*shape],
            "data_offsets": [int(begin), int(end)],
        } if 0 <= begin <= end and all(isinstance(size, int) and size >= 0 for size in shape):
            return TensorEntry(
                name=name, dtype=dtype, shape=tuple(shape), begin=first + begin, end=first + end
            )
    raise ValueError(f"it does not say what tensor {name} is and where it lies")


def _describe(policy: PolicyVersion, directory: Path) -> Manifest:
    tensors: dict[str, str] = {}
    files: dict[str, str] = {}
    size = 0
    for file in sorted(directory.iterdir()):
        if file.name == MANIFEST:
            continue
        size += file.stat().st_size
        if file.suffix == ".safetensors":
            tensors.update(_tensor_checksums(file))
        else:
            files[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    if not tensors:
        raise PolicyCorrupt(f"{directory} holds no safetensors file")
    return Manifest(policy=policy, tensors=tensors, files=files, bytes=size)


def _tensor_checksums(file: Path) -> dict[str, str]:
    checksums: dict[str, str] = {}
    with file.open("rb") as stream:
        for entry in read_tensor_entries(file):
            digest = hashlib.sha256(f"{entry.dtype} {entry.shape} ".encode())
            stream.seek(entry.begin)
            left = entry.end - entry.begin
            while left:
                chunk = stream.read(min(_CHUNK, left))
                if not chunk:
                    raise PolicyCorrupt(f"tensor {entry.name}: {file} ends before it does")
                digest.update(chunk)
                left -= len(chunk)
            checksums[entry.name] = digest.hexdigest()
    return checksums


def _compare(policy: str, kind: str, wanted: dict[str, str], found: dict[str, str]) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            how = "is missing" if name not in found else "differs from the manifest"
            raise PolicyCorrupt(f"{policy}: {kind} {name} {how}")


def _write_manifest(file: Path, manifest: Manifest) -> None:
    body = {
        "number": manifest.policy.number,
        "lineage": manifest.policy.lineage,
        "bytes": manifest.bytes,
        "tensors": manifest.tensors,
        "files": manifest.files,
    }
    file.write_text(json.dumps(body, indent=1) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
