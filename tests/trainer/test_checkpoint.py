"""Checkpoints as files: whole or invisible, and refused when they do not fit."""

import pytest

from dapod.config import ConfigError
from dapod.ledger import LedgerEntry
from services.trainer.checkpoint import (
    RECORD,
    Checkpoint,
    CheckpointStore,
    await_sight,
    check_resumable,
)
from tests.trainer.harness import make_config


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def checkpoint(config, step, *, ranks=1):
    return Checkpoint(
        step=step,
        ranks=ranks,
        zero_stage=config.trainer.zero_stage,
        config_digest=config.digest(),
        lineage="0a1b2c3d",
        ledger=tuple(
            LedgerEntry(step=s, group_ids=(f"0-{s}", f"1-{s}"), digest=f"d{s}") for s in range(step)
        ),
    )


def saved(store, config, step):
    store.begin(step)
    (store.beside(step) / "engine").mkdir()
    (store.beside(step) / "engine" / "part").write_text("weights")
    store.finish(checkpoint(config, step))


def test_a_fresh_run_has_no_checkpoint(store):
    assert store.latest() is None


def test_what_is_read_back_is_what_was_written(store, config):
    saved(store, config, 4)
    assert store.latest() == checkpoint(config, 4)
    assert (store.path(4) / "engine" / "part").read_text() == "weights"


def test_a_checkpoint_that_was_not_finished_is_invisible_and_cleared_away(store, config):
    saved(store, config, 4)
    store.begin(8)
    (store.beside(8) / "part").write_text("half")
    assert store.latest() == checkpoint(config, 4)
    store.begin(8)
    assert not list(store.beside(8).iterdir())


def test_only_the_two_newest_are_kept(store, config):
    for step in (2, 4, 6, 8):
        saved(store, config, step)
    assert [store.path(step).exists() for step in (2, 4, 6, 8)] == [False, False, True, True]


def test_a_checkpoint_of_another_number_of_ranks_is_refused_with_both_numbers(config):
    with pytest.raises(ConfigError, match=r"2 ranks and this start has 1.*trainer\.ranks=2"):
        check_resumable(checkpoint(config, 4, ranks=2), config, 1)


def test_a_checkpoint_of_another_zero_stage_is_refused(config, tmp_path):
    other = make_config(tmp_path, trainer={"zero_stage": 3})
    with pytest.raises(ConfigError, match="zero_stage=2 and this start has 3"):
        check_resumable(checkpoint(config, 4), other, 1)


def test_a_checkpoint_of_another_config_is_refused(config, tmp_path):
    other = make_config(tmp_path, optimiser={"learning_rate": 5e-3})
    with pytest.raises(ConfigError, match="another config"):
        check_resumable(checkpoint(config, 4), other, 1)


def test_a_longer_run_may_go_on_from_a_checkpoint(config, tmp_path):
    check_resumable(checkpoint(config, 4), make_config(tmp_path, run={"steps": 99}), 1)


def test_an_unreadable_record_is_named(store, config):
    saved(store, config, 4)
    (store.path(4) / RECORD).write_text("{")
    with pytest.raises(ConfigError, match=rf"{RECORD} .*start a new run .*policies/v<N>"):
        store.latest()


def test_a_node_takes_the_checkpoint_that_rank_0_names(store, config):
    saved(store, config, 4)
    saved(store, config, 8)
    assert store.await_finished(4, lambda _: None) == checkpoint(config, 4)


def test_a_node_waits_until_it_sees_what_rank_0_has_made(tmp_path):
    """As over NFS, which may show a directory of before for a minute."""
    late, reasons = tmp_path / "step-00000004", []

    def waiting(reason):
        reasons.append(reason)
        late.mkdir(exist_ok=True)

    await_sight(late, waiting)
    assert reasons == [f"waiting for {late} to be seen on this node"]


def test_a_run_directory_that_nodes_do_not_share_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="DAPOD_RUN_DIR on storage that all nodes"):
        await_sight(tmp_path / "elsewhere", lambda _: None, seconds=0)
