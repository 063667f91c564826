"""Files of a data set on the Hugging Face hub, brought into its cache.

`huggingface_hub` reads its own variables: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE. Offline,
or when the hub does not answer, the cache is used, if it holds all files.

It is not the library `datasets`: no configurations and splits are guessed, FILES names the files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from dapod.config import ConfigError
from dapod.config.source import HubSource

SUFFIXES = (".parquet", ".jsonl")
_SECONDS = 30.0
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
"""How the hub's own tools name the parts of one set."""


def fetch(source: HubSource) -> tuple[str, list[Path]]:
    """The commit, and the local files in the order of their names. Raises `ConfigError`."""
    import httpx2
    from huggingface_hub import HfApi, constants, errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    if constants.HF_HUB_OFFLINE:
        return _cached(source, "HF_HUB_OFFLINE=1 forbids to download it")
    try:
        info = HfApi().dataset_info(source.repository, revision=source.revision, timeout=_SECONDS)
        wanted = choose(source, [file.rfilename for file in info.siblings or []])
        folder = _snapshot(source, wanted, local=False)
        return folder.name, [folder / name for name in wanted]
    except errors.GatedRepoError as error:
        raise _cannot(source, "accept its terms on the hub and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise _cannot(source, "there is none of that name, or HF_TOKEN may not see it") from error
    except errors.RevisionNotFoundError as error:
        raise _cannot(source, f"it has no revision {source.revision!r}") from error
    except errors.HFValidationError as error:
        raise _cannot(source, "the hub allows no such name") from error
    except (httpx2.HTTPError, OSError) as error:
        return _cached(source, f"{constants.ENDPOINT} cannot be asked ({type(error).__name__})")


def choose(source: HubSource, names: Sequence[str]) -> list[str]:
    """The files a source means. Raises `ConfigError` unless they are one set.

    Without FILES a repository must hold nothing else: GSM8K's has train and test, and a model
    trained on both has no test any more.
    """
    data = sorted(name for name in names if name.endswith(SUFFIXES))
    there = ", ".join(data) or "no .parquet and no .jsonl file"
    wanted = [name for name in data if fnmatchcase(name, source.files or "*")]
    if not wanted:
        raise _cannot(source, f"no file is called {source.files or '*'} (it has {there})")
    if not source.files and len({_SHARD.sub("", name) for name in wanted}) > 1:
        raise _cannot(
            source,
            f"it has several sets ({there}): name one as "
            f"hub:{source.repository}@{source.revision}/{_pattern(wanted[-1])}",
        )
    return wanted


def _pattern(name: str) -> str:
    return _SHARD.sub("-*", name)


def _cached(source: HubSource, why: str) -> tuple[str, list[Path]]:
    patterns = [source.files] if source.files else [f"*{suffix}" for suffix in SUFFIXES]
    try:
        folder = _snapshot(source, patterns, local=True)
    except OSError as error:
        raise _cannot(source, f"{why}, and the cache does not hold all of it") from error
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return folder.name, [folder / name for name in choose(source, names)]


def _snapshot(source: HubSource, patterns: list[str], *, local: bool) -> Path:
    """The directory of the revision's commit in the cache; it checks that no file is missing."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            source.repository,
            repo_type="dataset",
            revision=source.revision,
            allow_patterns=patterns,
            local_files_only=local,
        )
    )


def _cannot(source: HubSource, why: str) -> ConfigError:
    return ConfigError(f"data.path: cannot read {source.repository} from the hub: {why}")
