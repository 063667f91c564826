"""Which directory a run takes, and what it keeps from one start to the next."""

import os
from pathlib import Path

import pytest

from dapod.cli.run_dir import RunDirectory, choose
from dapod.config import ConfigError, RunConfig, load


@pytest.fixture
def config(config_file: Path) -> RunConfig:
    return load(config_file)


def begin(config: RunConfig, base: Path, *, resume: bool = False) -> RunDirectory:
    directory = choose(config, given=None, resume=resume, redis="embedded", base=base)
    directory.open(config, "embedded")
    return directory


def test_a_taken_default_directory_gets_a_number(config: RunConfig, tmp_path: Path) -> None:
    names = [begin(config, tmp_path / "runs").path.name for _ in range(3)]
    assert names == ["tiny", "tiny-2", "tiny-3"]


def test_resume_goes_on_with_the_newest_under_the_same_id(
    config: RunConfig, tmp_path: Path
) -> None:
    _, newest = (begin(config, tmp_path / "runs") for _ in range(2))
    again = begin(config, tmp_path / "runs", resume=True)
    assert (again.path, again.run_id, again.resumed) == (newest.path, newest.run_id, True)


def test_the_effective_config_is_written_and_reads_the_same(
    config_file: Path, tmp_path: Path
) -> None:
    config = load(config_file, ["run.steps=9", 'data.template="Say: \\u007f {prompt}\\n"'])
    directory = begin(config, tmp_path / "runs")
    assert load(directory.path / "config.toml") == config


def test_more_steps_are_no_other_config(config_file: Path, tmp_path: Path) -> None:
    begin(load(config_file), tmp_path / "runs")
    longer = load(config_file, ["run.steps=20"])
    again = begin(longer, tmp_path / "runs", resume=True)
    assert load(again.path / "config.toml").run.steps == 20


def test_state_is_looked_for_where_it_was_kept(config: RunConfig, tmp_path: Path) -> None:
    begin(config, tmp_path / "runs")
    with pytest.raises(ConfigError, match="go on with the same --redis-url"):
        choose(config, given=None, resume=True, redis="redis://elsewhere", base=tmp_path / "runs")


def test_an_empty_directory_may_be_used(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir()
    directory = choose(config, given=tmp_path / "fresh", resume=False, redis="embedded")
    assert not directory.resumed


def test_the_lock_is_free_again_afterwards(config: RunConfig, tmp_path: Path) -> None:
    directory = begin(config, tmp_path / "runs")
    with directory.locked():
        assert (directory.path / ".lock").read_text() == str(os.getpid())
    with directory.locked():
        pass


def test_a_run_that_is_refused_before_its_first_step_leaves_no_directory(
    config: RunConfig, tmp_path: Path
) -> None:
    directory = begin(config, tmp_path / "runs")
    with pytest.raises(ConfigError, match="no such verifier"), directory.gone_when_refused():
        raise ConfigError("no such verifier")
    assert not directory.path.exists()


def test_what_was_trained_stays_and_so_does_what_crashed(config: RunConfig, tmp_path: Path) -> None:
    trained, crashed = (begin(config, tmp_path / "runs") for _ in range(2))
    trained.steps_file.write_text("{}\n")
    with pytest.raises(ConfigError), trained.gone_when_refused():
        raise ConfigError("full")
    with pytest.raises(RuntimeError), crashed.gone_when_refused():
        raise RuntimeError("a bug")
    again = choose(config, given=crashed.path, resume=True, redis="embedded")
    with pytest.raises(ConfigError), again.gone_when_refused():
        raise ConfigError("gone on with")
    assert trained.path.exists() and crashed.path.exists()
