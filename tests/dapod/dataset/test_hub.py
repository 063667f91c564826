"""Data sets of the Hugging Face hub: which files are meant, and what the cache is good for."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dapod.config import ConfigError
from dapod.config.source import HubSource
from dapod.dataset.hub import choose
from tests.dapod.dataset.fake_hub import COMMIT, serving

ROOT = Path(__file__).parents[3]
DEAD = "http://127.0.0.1:1"


def rows(first: int) -> list[dict[str, str]]:
    return [{"prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(first, first + 3)]


def parquet(first: int) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(first)), file)
    return file.getvalue()


REPOSITORIES = {
    "team/shards": {
        "README.md": b"# rows",
        "data/train-00000-of-00002.parquet": parquet(0),
        "data/train-00001-of-00002.parquet": parquet(2),
    },
    "team/splits": {
        "main/test-00000-of-00001.parquet": parquet(0),
        "main/train-00000-of-00001.parquet": parquet(5),
    },
    "team/lines": {"rows.jsonl": "\n".join(map(json.dumps, rows(0))).encode()},
    "team/nothing": {"README.md": b""},
}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with serving(REPOSITORIES) as url:
        yield url


def read(*paths: str, home: Path, **variables: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.dapod.dataset.read_paths", *paths],
        cwd=ROOT,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "NO_PROXY": "127.0.0.1",
            "HF_HOME": str(home),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said: list[str] = json.loads(done.stdout)
    return said


def test_what_the_hub_has_is_read_and_what_it_has_not_is_one_sentence(hub, tmp_path):
    paths = {
        "hub:team/shards": f"(commit {COMMIT}): 6 rows read, 1 repeated, 5 kept",
        f"hub:team/shards@{COMMIT}/data/train-00001*": "3 rows read, 3 kept",
        "hub:team/splits/main/train-*": "3 rows read, 3 kept",
        "hub:team/lines@main": "3 rows read, 3 kept",
        "hub:team/splits": "it has several sets (main/test-00000-of-00001.parquet, "
        "main/train-00000-of-00001.parquet): name one as hub:team/splits@main/main/train-*.parquet",
        "hub:team/splits/train*": "no file is called train* (it has main/test-",
        "hub:team/nothing": "(it has no .parquet and no .jsonl file)",
        "hub:team/shards@v9": "from the hub: it has no revision 'v9'",
        "hub:team/none": "there is none of that name",
        "hub:team/a--b": "the hub allows no such name",
        "hub:team/gated": "accept its terms on the hub and set HF_TOKEN",
    }
    said = read(*paths, home=tmp_path, HF_ENDPOINT=hub)
    for sentence, expected in zip(said, paths.values(), strict=True):
        assert expected in sentence
        assert "\n" not in sentence


def test_without_the_hub_the_cache_is_read_if_it_holds_all_of_the_set(hub, tmp_path):
    read("hub:team/shards", "hub:team/splits/main/test-*", home=tmp_path, HF_ENDPOINT=hub)
    paths = ("hub:team/shards", "hub:team/splits/main/test-*", "hub:team/splits/main/train-*")
    offline = read(*paths, home=tmp_path, HF_HUB_OFFLINE="1")
    dead = read(*paths, home=tmp_path, HF_ENDPOINT=DEAD)
    for said in (offline, dead):
        assert "6 rows read, 1 repeated, 5 kept" in said[0]
        assert "3 rows read, 3 kept" in said[1]
    where = "data.path: cannot read team/splits from the hub: "
    lacks = "and the cache does not hold all of it"
    assert offline[2] == f"ConfigError: {where}HF_HUB_OFFLINE=1 forbids to download it, {lacks}"
    assert dead[2] == f"ConfigError: {where}{DEAD} cannot be asked (ConnectError), {lacks}"


def test_shards_are_one_set_and_sets_are_not():
    one = ["a/t-00000-of-00002.parquet", "a/t-00001-of-00002.parquet", "README.md"]
    assert choose(HubSource(repository="o/n"), one[::-1]) == one[:2]
    with pytest.raises(ConfigError, match="several sets"):
        choose(HubSource(repository="o/n"), [*one, "b/t-00000-of-00001.parquet"])
