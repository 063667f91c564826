"""Everything is killed with SIGKILL while a run goes on, and it ends as if nothing had happened.

Real Valkey, vLLM and DeepSpeed, started by the command line. The groups are small: what is tested
is what survives, not what is learned.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dapod.policy_store import Manifest, PolicyStore
from dapod.types import PolicyVersion
from tests.chaos.recorder import Recorder, Recording
from tests.chaos.replay import train_again
from tests.e2e.live_run import End, LiveRun, read_rows

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

STEPS = 8
CHECKPOINT_EVERY = 3
KILLED_IN_TURN = ("valkey", "buffer", "reward", "rollout")
LAST_BEFORE_THE_TRAINER_DIES = 4
SMALL = {
    "algorithm.group_size": 4,
    "algorithm.prompts_per_step": 4,
    "algorithm.prompts_per_update": 2,
    "rollout.groups_in_flight": 4,
    # A dead rollout's prompts wait this long.
    "buffer.lease_seconds": 20,
}
TIMES = {"seconds_wait", "seconds_train", "seconds_publish", "seconds_total", "time_unix"}


@dataclass(frozen=True, kw_only=True)
class Aftermath:
    """What is left of the run in which everything was killed."""

    run: LiveRun
    end: End
    recording: Recording
    left: list[str]
    """Processes."""

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.run.run_dir / "summary.json").read_text())

    @property
    def superseded(self) -> list[dict[str, Any]]:
        return read_rows(self.run.run_dir / "steps.superseded.jsonl")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Aftermath]:
    """One run for all tests: Valkey, buffer, reward and rollout die in turn, then the trainer."""
    directory = tmp_path_factory.mktemp("killed") / "run"
    settings = {**SMALL, "trainer.checkpoint_every_steps": CHECKPOINT_EVERY}
    with LiveRun.start(directory, steps=STEPS, settings=settings) as run, Recorder(run) as recorder:
        for number, service in enumerate(KILLED_IN_TURN):
            run.wait_for_steps(number + 1)
            pid = run.kill(service)
            run.wait(lambda s=service, p=pid: run.is_back(s, p), f"{service} is back")
        run.wait_for_steps(LAST_BEFORE_THE_TRAINER_DIES + 1)
        run.kill_with_children("trainer")
        end = run.wait_until_ended(seconds=600)
        yield Aftermath(run=run, end=end, recording=recorder.recording, left=run.left_behind())


def test_the_run_ends_well_with_one_row_for_each_step(killed: Aftermath) -> None:
    assert killed.end.status == 0, killed.run.story()
    assert [row["step"] for row in killed.run.rows()] == list(range(STEPS))
    assert killed.left == []


def test_only_what_was_killed_was_restarted_and_people_are_told(killed: Aftermath) -> None:
    expected = dict.fromkeys((*KILLED_IN_TURN, "trainer"), 1)
    assert killed.summary["restarts"] == expected, killed.run.story()
    for name in expected:
        assert f"{name} ended (killed by SIGKILL" in killed.end.output


def test_no_group_is_lost_doubled_or_stale(killed: Aftermath) -> None:
    assert killed.summary["conservation_error"] == 0
    assert killed.summary["groups"]["stale_ever"] == 0
    assert killed.summary["groups"]["trained"] == STEPS * SMALL["algorithm.prompts_per_step"]
    assert all(row["groups_stale"] == 0 and row["staleness_max"] <= 1 for row in killed.run.rows())


def test_every_group_is_trained_in_exactly_one_step(killed: Aftermath) -> None:
    trained = [group.group_id for plan in killed.recording.ledger() for group in plan.groups]
    assert len(trained) == len(set(trained)) == STEPS * SMALL["algorithm.prompts_per_step"]


def test_the_newest_checkpoint_holds_the_ledger_the_buffer_handed_out(killed: Aftermath) -> None:
    newest = max((killed.run.run_dir / "checkpoints").glob("step-*/checkpoint.json"))
    ledger = json.loads(newest.read_text())["ledger"]
    handed_out = killed.recording.ledger()[: len(ledger)]
    assert len(ledger) >= CHECKPOINT_EVERY * (STEPS // CHECKPOINT_EVERY)
    assert [entry["digest"] for entry in ledger] == [plan.digest for plan in handed_out]


def test_steps_after_the_checkpoint_are_handed_out_again_verbatim(killed: Aftermath) -> None:
    for step in range(CHECKPOINT_EVERY, LAST_BEFORE_THE_TRAINER_DIES + 1):
        plans = list(killed.recording.plans[step].values())
        assert len(plans) == 2, f"step {step} was handed out under {len(plans)} lineages"
        assert plans[0] == plans[1]
    before = killed.recording.plans[CHECKPOINT_EVERY - 1]
    assert len(before) == 1


def test_rows_of_steps_trained_again_are_kept_aside_and_say_the_same(killed: Aftermath) -> None:
    replayed = range(CHECKPOINT_EVERY, LAST_BEFORE_THE_TRAINER_DIES + 1)
    rows = killed.run.rows()
    assert [row["step"] for row in killed.superseded] == list(replayed)
    for row in killed.superseded:
        assert _without_times(row) == _without_times(rows[row["step"]])


def test_the_last_policy_equals_bit_for_bit_that_of_an_uninterrupted_run(
    killed: Aftermath, tmp_path: Path
) -> None:
    train_again(killed.recording, killed.run, tmp_path / "again")
    interrupted = newest_policy(killed.run.run_dir)
    uninterrupted = newest_policy(tmp_path / "again")
    assert interrupted.policy.number == uninterrupted.policy.number == STEPS
    assert interrupted.tensors == uninterrupted.tensors


def test_a_killed_runner_leaves_nothing_running_and_its_run_goes_on_with_one_more_rollout(
    tmp_path: Path, model: Path
) -> None:
    """Two ranks of ZeRO-3 all along, so that their checkpoint is what it goes on from."""
    settings = {
        **SMALL,
        "trainer.ranks": 2,
        "trainer.zero_stage": 3,
        "trainer.checkpoint_every_steps": 1,
        # Few at a time, so that no rollout has done all the work before the other has started.
        "rollout.groups_in_flight": 2,
    }
    directory = tmp_path / "run"
    with LiveRun.start(directory, steps=3, settings=settings) as run:
        run.wait(lambda: run.checkpointed() == 1, "the first step is in a checkpoint")
        run.kill_runner()
        run.wait_until_nothing_is_left(seconds=15)
        first = run.rows()[0]
    again = LiveRun.start(directory, steps=4, rollouts=2, settings=settings, resume=True)
    with again as run:
        end = run.wait_until_ended(seconds=600)
        assert end.status == 0, run.story()
        assert [row["step"] for row in run.rows()] == [0, 1, 2, 3]
        assert run.rows()[0] == first
        assert run.left_behind() == []
        for rollout in ("rollout-1", "rollout-2"):
            assert "group=" in run.log(rollout), f"{rollout} has worked on no group"
    assert json.loads((directory / "summary.json").read_text())["conservation_error"] == 0
    assert newest_policy(directory).policy.number == 4


def test_ctrl_c_while_the_engine_starts_stops_everything_and_says_how_to_go_on(
    tmp_path: Path, model: Path
) -> None:
    with LiveRun.start(tmp_path / "run", steps=9, settings=SMALL) as run:
        run.wait(lambda: "engine" in run.activity("rollout"), "the engine is being started")
        run.press_ctrl_c()
        end = run.wait_until_ended(seconds=30)
        assert end.status == 130, run.story()
        assert "--resume" in end.output.splitlines()[-1]
        assert run.left_behind() == []


def newest_policy(run_dir: Path) -> Manifest:
    """The manifest of the newest policy, its files checked against it."""
    store = PolicyStore(run_dir / "policies")
    link = (store.root / f"v{store.versions()[-1].number}").resolve().name
    number, lineage = link.removeprefix("v").split("-")
    policy = PolicyVersion(number=int(number), lineage=lineage)
    store.verify(policy)
    return store.manifest(policy)


def _without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMES}
