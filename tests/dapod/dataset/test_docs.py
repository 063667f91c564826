"""docs/data.md: what it tells people to write is right."""

import re
import tomllib
from pathlib import Path

import pytest

from dapod.config import Data, load
from dapod.config.source import HubSource, LocalSource, ProceduralSource

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_a_right_data_section(block):
    table = tomllib.loads(block)
    assert list(table) == ["data"]
    overrides = [f"data.{key}={value!r}" for key, value in table["data"].items()]
    assert load(ROOT / "configs" / "quickstart.toml", overrides).data.verifier


def test_there_is_one_for_every_source():
    sources = {type(Data(**tomllib.loads(block)["data"]).source) for block in BLOCKS}
    assert sources == {LocalSource, HubSource, ProceduralSource}


def test_every_key_is_explained():
    named = set(re.findall(r"(?:`|`data\.|^)(\w+)\b", PAGE, re.MULTILINE))
    assert set(Data.model_fields) - named == set()
