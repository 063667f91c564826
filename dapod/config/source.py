"""Where a data set comes from, as `data.path` says it; nothing is opened here.

rows.jsonl, rows.json          JSON lines
rows.parquet, directory        parquet: one file, or all *.parquet files of a directory
hub:OWNER/NAME[@REVISION][/FILES]      the Hugging Face hub; FILES is a name or a pattern
reasoning_gym:DATASET          generated
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_HUB, _PROCEDURAL = "hub:", "reasoning_gym:"
# Names as the hub allows them. A revision with a slash (refs/pr/1) is written as its commit.
_REPOSITORY = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<files>.+))?", re.ASCII
)


@dataclass(frozen=True, kw_only=True)
class LocalSource:
    """A file or a directory."""

    path: Path

    @property
    def identity(self) -> str:
        """Its name: where it lies is the machine's business, and moving it must not end a run."""
        return self.path.name


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """Files of a data set repository on the hub."""

    repository: str
    revision: str = "main"
    """A branch, a tag or a commit."""
    files: str = ""
    """A pattern as in fnmatch, `*` matching slashes too; empty for all data files."""

    @property
    def identity(self) -> str:
        return f"{_HUB}{self.repository}@{self.revision}/{self.files}"


@dataclass(frozen=True, kw_only=True)
class ProceduralSource:
    """A data set that reasoning-gym generates."""

    dataset: str

    @property
    def identity(self) -> str:
        return f"{_PROCEDURAL}{self.dataset}"


Source = LocalSource | HubSource | ProceduralSource


def parse_source(path: str) -> Source:
    """Raises `ValueError` saying how a source is written."""
    if path.startswith(_PROCEDURAL):
        if not (dataset := path.removeprefix(_PROCEDURAL)):
            raise ValueError(f"data.path = {path!r}: write it as reasoning_gym:DATASET")
        return ProceduralSource(dataset=dataset)
    if not path.startswith(_HUB):
        return LocalSource(path=Path(path))
    match = _REPOSITORY.fullmatch(path.removeprefix(_HUB))
    if match is None:
        raise ValueError(f"data.path = {path!r}: write it as hub:OWNER/NAME[@REVISION][/FILES]")
    return HubSource(**{key: value for key, value in match.groupdict().items() if value})
