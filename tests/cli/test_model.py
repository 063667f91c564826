"""The quickstart model's directory: whole, or not there."""

import json
import os
import sys
from pathlib import Path

import pytest

from dapod.cli import model
from dapod.config import ConfigError


def quiet(_: str) -> None:
    pass


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model directory made the way `fetch` makes one, of files that are no model."""
    made = tmp_path / "work" / "model"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(os.urandom(1000))
    (made / "model.safetensors").chmod(0o600)
    model.put(made, tmp_path / "fetched")
    return tmp_path / "fetched"


def test_a_whole_model_is_kept_without_downloading(directory: Path) -> None:
    said: list[str] = []
    before = (directory / "model.safetensors").stat().st_mtime_ns
    assert model.fetch(directory, say=said.append) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == before
    assert said == [f"{directory} is whole; nothing to do"]


def test_every_file_of_the_model_can_be_read_by_others(directory: Path) -> None:
    assert {file.stat().st_mode & 0o777 for file in directory.glob("model.*")} == {0o644}


def test_a_changed_file_makes_the_model_not_whole(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"torn")
    assert not model.is_whole(directory)


def test_a_missing_file_makes_the_model_not_whole(directory: Path) -> None:
    (directory / "config.json").unlink()
    assert not model.is_whole(directory)


@pytest.mark.parametrize("marker", ["", "[]", "{}", '{"files": null}', "\xff"])
def test_an_unreadable_list_makes_the_model_not_whole(directory: Path, marker: str) -> None:
    (directory / model.MARKER).write_text(marker, encoding="latin-1")
    assert not model.is_whole(directory)


def test_a_damaged_model_is_replaced(directory: Path, tmp_path: Path) -> None:
    (directory / "config.json").write_text("torn")
    again = tmp_path / "again" / "model"
    again.mkdir(parents=True)
    (again / "config.json").write_text('{"whole": true}')
    model.check_place(directory)
    model.put(again, directory)
    assert model.is_whole(directory)
    assert json.loads((directory / "config.json").read_text()) == {"whole": True}


def test_somebody_elses_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"was not made by `dapod model fetch`.*--dir"):
        model.fetch(tmp_path, say=quiet)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_failed_command_is_told_with_its_last_line() -> None:
    with pytest.raises(ConfigError, match=r"no model \(it broke\)$"):
        model.finished_in_time(
            [sys.executable, "-c", "print('first'); raise SystemExit('it broke')"], 30, "no model"
        )


def test_a_command_that_does_not_end_is_ended() -> None:
    with pytest.raises(ConfigError, match=r"no model \(no end after 0 s\)"):
        model.finished_in_time(
            [sys.executable, "-c", "import time; time.sleep(60)"], 0.2, "no model"
        )
