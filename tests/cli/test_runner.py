"""A whole runner over fake services: how it ends, and that it leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dapod.cli.processes import PROC, carrying, kill_all
from tests.cli.conftest import ROOT
from tests.cli.waiting import wait_until

SLEEP = "import time; time.sleep(60)"
WITH_ENGINE = f"""
import subprocess, sys
subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)
print('up', flush=True)
{SLEEP}
"""
STUBBORN = f"""
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
{SLEEP}
"""


class FakeRun:
    """`fake_run.py` as a process; every process it starts carries its mark."""

    def __init__(self, directory: Path, **services: str) -> None:
        self.directory = directory
        self.mark = {"DAPOD_TEST_MARK": uuid.uuid4().hex}
        sources = directory / "services.sources"
        sources.write_text(json.dumps(services))
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fake_run.py"), directory, sources],
            env={**os.environ, **self.mark, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, *names: str) -> None:
        for name in names:
            log = self.directory / "logs" / f"{name}.log"
            wait_until(lambda log=log: log.exists() and "up" in log.read_text(), name)

    def alive(self) -> list[int]:
        return carrying(self.mark)

    def reaper(self) -> int:
        found: list[int] = []

        def one() -> bool:
            found[:] = self._reapers()
            return len(found) == 1

        wait_until(one, "one reaper")
        return found[0]

    def _reapers(self) -> list[int]:
        return [pid for pid in self.alive() if b"dapod.cli.reaper" in _command_line(pid)]

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


def _command_line(pid: int) -> bytes:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    runs: list[FakeRun] = []

    def begin(**services: str) -> FakeRun:
        runs.append(FakeRun(tmp_path, **services))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.wait(timeout=10)
        for stream in (run.process.stdout, run.process.stderr):
            stream.close()
        try:
            wait_until(lambda run=run: run.alive() == [], "nothing left")
        finally:
            kill_all(run.mark)


def test_a_run_ends_when_the_trainer_has(start) -> None:
    run = start(buffer=SLEEP, rollout=WITH_ENGINE, trainer="pass")
    status, out, err = run.finish()
    assert (status, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["ended"] == "finished"
    assert run.alive() == []


def test_a_trainer_that_leaves_an_unfinished_run_is_restarted(start, tmp_path: Path) -> None:
    (tmp_path / "unfinished").touch()
    run = start(buffer=SLEEP, trainer="print('up')")
    log = tmp_path / "logs" / "trainer.log"
    wait_until(lambda: log.exists() and log.read_text().count("up") == 2, "the second start")
    (tmp_path / "unfinished").unlink()
    status, out, _ = run.finish()
    assert status == 0
    assert "trainer ended (the trainer stopped too early); restart 1" in out


def test_a_killed_runner_leaves_nothing_behind(start) -> None:
    run = start(buffer="print('up', flush=True);" + SLEEP, rollout=WITH_ENGINE, trainer=STUBBORN)
    run.wait_for("buffer", "rollout", "trainer")
    assert len(run.alive()) == 6  # runner, reaper, three services, the engine
    run.process.kill()
    wait_until(lambda: run.alive() == [], "nothing left")


def test_the_reaper_is_replaced_when_it_dies(start) -> None:
    run = start(buffer=SLEEP, trainer=STUBBORN)
    run.wait_for("trainer")
    first = run.reaper()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: run.reaper() != first, "another reaper")
    run.process.kill()
    wait_until(lambda: run.alive() == [], "nothing left")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_in_order(start, number: signal.Signals) -> None:
    run = start(buffer=SLEEP, rollout=WITH_ENGINE, trainer=f"print('up', flush=True); {SLEEP}")
    run.wait_for("rollout", "trainer")
    run.process.send_signal(number)
    status, out, err = run.finish()
    assert status == 128 + number
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["ended"] == "stopped"
    assert run.alive() == []


def test_a_second_ctrl_c_does_not_wait_for_the_stubborn(start) -> None:
    run = start(buffer=SLEEP, trainer=STUBBORN)
    run.wait_for("trainer")
    run.process.send_signal(signal.SIGINT)
    assert run.process.stdout is not None
    while "stopping" not in run.process.stdout.readline():
        pass
    run.process.send_signal(signal.SIGINT)
    run.process.wait(timeout=8)  # of a grace of 10
    assert run.alive() == []


def test_a_reader_that_goes_away_ends_the_run(start) -> None:
    run = start(buffer=SLEEP, rollout=WITH_ENGINE, trainer=f"print('up', flush=True); {SLEEP}")
    run.wait_for("rollout", "trainer")
    assert run.process.stdout is not None
    run.process.stdout.close()  # as in `dapod run ... | head`
    os.kill(run.reaper(), signal.SIGKILL)  # that is something to say
    assert run.process.wait(timeout=15) != 0
    assert run.alive() == []


def test_a_mistake_of_the_user_stops_everything(start) -> None:
    mistake = "import sys; print('dapod: the data is bad', file=sys.stderr); sys.exit(2)"
    run = start(buffer=SLEEP, rollout=WITH_ENGINE, reward=mistake)
    status, _, err = run.finish()
    assert (status, err) == (2, "dapod: the data is bad\n")
    assert run.alive() == []


def test_the_addresses_of_a_run_are_written_down_while_it_runs(start, tmp_path: Path) -> None:
    run = start(buffer="print('up', flush=True);" + SLEEP, trainer=STUBBORN)
    run.wait_for("buffer", "trainer")
    file = tmp_path / "services.json"
    wait_until(lambda: file.exists() and "trainer" in file.read_text(), "services.json")
    assert json.loads(file.read_text())["trainer"]["pid"] in run.alive()
    run.process.send_signal(signal.SIGTERM)
    run.process.send_signal(signal.SIGINT)
    run.finish()
    assert not file.exists()


LEAVES_A_SOCKET = f"""
import os, pathlib, socket, tempfile
path = os.path.join(tempfile.gettempdir(), '1c621e81-1bee-4cfd-967b-2e8cc1c28edb')
assert os.path.dirname(path) == os.environ['TMPDIR'] and len(path) < 108, path
socket.socket(socket.AF_UNIX).bind(path)
pathlib.Path(os.environ['RUN_DIR'], 'temporary').write_text(os.environ['TMPDIR'])
print('up', flush=True)
{SLEEP}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_temporary_files_of_killed_services_go_with_the_run(
    start, tmp_path: Path, monkeypatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("RUN_DIR", str(tmp_path))
    run = start(valkey=LEAVES_A_SOCKET, trainer=SLEEP)
    run.wait_for("valkey")
    temporary = Path((tmp_path / "temporary").read_text())
    assert len(list(temporary.iterdir())) == 1
    run.process.send_signal(number)
    wait_until(lambda: not temporary.exists(), "the directory is removed")
    wait_until(lambda: not run.alive(), "nothing is alive")
