"""Restarts, their bounds and the end, with real processes."""

import functools
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dapod.cli.fleet import ServiceSpec
from dapod.cli.processes import TOKEN, carrying
from dapod.cli.restarts import MAX_RESTARTS, RestartBudget
from dapod.cli.supervisor import Supervisor, TooManyRestarts
from dapod.config import ConfigError
from tests.cli.waiting import wait_until

SLEEP = "import time; time.sleep(60)"


class Run:
    """A supervisor over scripts, and what it said."""

    def __init__(self, directory: Path, stop_orders: dict[str, int], **scripts: str) -> None:
        (directory / "logs").mkdir()
        self.directory = directory
        self.said: list[str] = []
        self.token = uuid.uuid4().hex
        specs = [
            ServiceSpec(
                name=name,
                command=(sys.executable, "-c", script),
                environment=dict(os.environ),
                stop_order=stop_orders.get(name, 0),
            )
            for name, script in scripts.items()
        ]
        self.supervisor = Supervisor(
            specs,
            may_end="trainer",
            token=self.token,
            run_dir=directory,
            say=self.said.append,
            budget=functools.partial(RestartBudget, first_pause_seconds=0.01),
        )
        self.supervisor.start(list(scripts))

    def pids(self, name: str) -> list[int]:
        return carrying({TOKEN: self.token, "DAPOD_SERVICE": name})

    def polled(self, condition: bool) -> bool:
        self.supervisor.poll()
        return condition

    def poll_until_raises(self) -> None:
        wait_until(lambda: self.polled(False), "an error")

    def log(self, name: str) -> str:
        return (self.directory / "logs" / f"{name}.log").read_text()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    runs: list[Run] = []

    def begin(*, stop_orders: dict[str, int] | None = None, **scripts: str) -> Run:
        runs.append(Run(tmp_path, stop_orders or {}, **scripts))
        return runs[-1]

    yield begin
    for run in runs:
        run.supervisor.stop(hurry=lambda: True)
        assert carrying({TOKEN: run.token}) == []


def test_a_killed_service_is_restarted_and_that_is_said(start) -> None:
    run = start(buffer=f"print('serving', flush=True); {SLEEP}")
    wait_until(lambda: "serving" in run.log("buffer"), "the first start")
    (pid,) = run.pids("buffer")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: run.polled(run.log("buffer").count("serving") == 2), "the second start")
    assert run.supervisor.restarts == {"buffer": 1}
    assert run.said == ["buffer ended (killed by SIGKILL); restart 1 of at most 5 in 0.01 s"]


def test_what_a_dead_service_had_started_is_killed_before_its_restart(start) -> None:
    spawn = f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"
    run = start(rollout=f"import subprocess, sys; {spawn}; print('up', flush=True); {SLEEP}")
    wait_until(lambda: len(run.pids("rollout")) == 2, "the engine process")
    first = run.pids("rollout")
    os.kill(min(first), signal.SIGKILL)

    def replaced() -> bool:
        run.supervisor.poll()
        found = run.pids("rollout")
        return len(found) == 2 and not set(first) & set(found)

    wait_until(replaced, "another rollout with an engine of its own")


def test_too_many_restarts_end_the_run_with_the_end_of_the_log(start) -> None:
    run = start(reward="import sys; print('no luck'); sys.exit(7)")
    with pytest.raises(TooManyRestarts, match=r"(?s)exit status 7: no luck.*reward\.log.*no luck"):
        run.poll_until_raises()
    assert len(run.said) == MAX_RESTARTS
    assert run.log("reward").count("no luck") == MAX_RESTARTS + 1


def test_a_mistake_of_the_user_is_not_restarted(start) -> None:
    script = "import sys; print('dapod: data.path: no such file', file=sys.stderr); sys.exit(2)"
    run = start(buffer=script, reward=SLEEP)
    with pytest.raises(ConfigError, match=r"^data\.path: no such file$"):
        run.poll_until_raises()
    assert run.said == []


def test_the_reason_is_no_warning_that_came_after_it(start) -> None:
    tracker = "x.py:254: UserWarning: resource_tracker: There appear to be 1 leaked semaphore"
    quoted = "  warnings.warn('resource_tracker: There appear to be %d '"
    run = start(
        rollout=f"print('EngineFailed: it died'); print({tracker!r}); print({quoted!r}); exit(1)"
    )
    with pytest.raises(TooManyRestarts, match=r"exit status 1: EngineFailed: it died"):
        run.poll_until_raises()


def test_exit_status_2_without_a_sentence_is_a_crash(start) -> None:
    run = start(buffer="import sys; print('Usage: x'); sys.exit(2)")
    with pytest.raises(TooManyRestarts, match="exit status 2"):
        run.poll_until_raises()


def test_only_the_trainer_may_end_well(start) -> None:
    run = start(trainer="pass", buffer="pass")
    with pytest.raises(TooManyRestarts, match="buffer"):
        run.poll_until_raises()
    assert run.supervisor.ended_well
    assert run.supervisor.restarts["trainer"] == 0


def test_a_trainer_that_ended_too_early_is_started_again(start) -> None:
    run = start(trainer="print('once')")
    wait_until(lambda: run.polled(run.supervisor.ended_well), "the first end")
    run.supervisor.ended_too_early("the run has not finished")
    wait_until(lambda: run.polled(run.log("trainer").count("once") == 2), "the second start")
    assert "the run has not finished" in run.said[0]


def test_services_stop_in_order(start, tmp_path: Path) -> None:
    order = tmp_path / "order"
    script = f"""
import os, signal, sys, time
def stop(*_):
    open({str(order)!r}, 'a').write(os.environ['DAPOD_SERVICE'] + ' ')
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print('up', flush=True)
time.sleep(60)
"""
    run = start(
        stop_orders={"valkey": 2, "buffer": 1}, valkey=script, buffer=script, rollout=script
    )
    for name in ("valkey", "buffer", "rollout"):
        wait_until(lambda name=name: "up" in run.log(name), name)
    assert run.supervisor.stop()
    assert order.read_text() == "rollout buffer valkey "


def test_a_service_that_ignores_sigterm_is_killed_at_the_deadline(start) -> None:
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)"
    run = start(trainer=f"{ignore}; {SLEEP}")
    wait_until(lambda: "up" in run.log("trainer"), "the trainer")
    assert run.supervisor.stop(grace_seconds=0.5)
    assert run.pids("trainer") == []
