"""One worker process: how it ends is told apart, and nothing outlives its owner."""

import os
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path

import pytest

from dapod.types import Outcome
from services.reward.process import BrokenWorker, Job, VerifierProcess


def alive(pid):
    """A zombie whose parent is gone counts as dead: nobody may be left to reap it here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def job(verifier, response="12", answer="12"):
    return Job(verifier=verifier, response=response, answer=answer)


@pytest.fixture
def start(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with ExitStack() as started:

        def warm():
            process = VerifierProcess(verifiers_module="hostile_verifiers", memory_bytes=64 << 20)
            started.callback(process.close)
            process.wait_until_warm(30)
            return process

        yield warm


@pytest.fixture
def process(start):
    return start()


def test_a_warm_worker_says_which_verifiers_it_has(process):
    assert {"honest", "hang", "hoard"} <= set(process.verifiers)


@pytest.mark.parametrize(
    ("asked", "outcome", "extracted"),
    [
        (job("honest"), Outcome.CORRECT, "12"),
        (job("honest", response="13"), Outcome.WRONG, "13"),
        (job("mute"), Outcome.UNPARSED, None),
    ],
)
def test_a_judgement_leaves_the_worker_alive(process, asked, outcome, extracted):
    verification = process.judge(asked, 10)
    assert (verification.outcome, verification.extracted) == (outcome, extracted)
    assert process.alive


@pytest.mark.parametrize(
    ("verifier", "outcome", "detail"),
    [
        ("hang", Outcome.TIMEOUT, "no answer within 0.3 s"),
        ("hang_in_c", Outcome.TIMEOUT, "no answer within 0.3 s"),
        ("hoard", Outcome.KILLED, "exit status 12"),
        ("leave", Outcome.KILLED, "exit status 3"),
        ("refuse", Outcome.ERROR, "RuntimeError: no idea x"),
        ("refuse_loudly", Outcome.ERROR, "BaseException: not even an Exception"),
        ("nonsense", Outcome.ERROR, "no judgement"),
        ("nothing", Outcome.ERROR, "AttributeError"),
        ("forge", Outcome.ERROR, "over 65536 bytes"),
    ],
)
def test_a_failure_is_told_apart_and_ends_the_worker(process, verifier, outcome, detail):
    # Only a hang needs a short deadline; the others must not be cut off on a busy machine.
    verification = process.judge(job(verifier), 0.3 if "hang" in verifier else 20)
    assert verification.outcome is outcome
    assert detail in verification.detail
    assert len(verification.detail) < 1000
    assert not process.alive


def test_prints_go_nowhere_and_a_huge_answer_is_cut(capfd, start):
    # Started here: what a fixture starts writes past capfd.
    verification = start().judge(job("chatter"), 20)
    assert verification.outcome is Outcome.CORRECT
    assert len(verification.extracted) == 300
    assert capfd.readouterr() == ("", "")


def test_text_of_any_kind_and_size_crosses_the_socket(process):
    for text in ("\0\r\n\u2028\U0001f600\ud800", "x" * 2_000_000, '{"correct": true}\n'):
        assert process.judge(job("honest", text, text), 20).outcome is Outcome.CORRECT


def test_a_worker_killed_from_outside_is_an_outcome(process):
    os.kill(process.pid, 9)
    verification = process.judge(job("honest"), 20)
    assert verification.outcome is Outcome.KILLED
    assert "exit status -9" in verification.detail


def test_a_worker_without_verifiers_does_not_start_and_says_why(capfd):
    process = VerifierProcess(verifiers_module="no_such_module", memory_bytes=64 << 20)
    with pytest.raises(BrokenWorker, match="did not start"):
        process.wait_until_warm(30)
    process.close()
    assert "No module named 'no_such_module'" in capfd.readouterr().err


OWNER = """
    import sys, threading
    from services.reward.process import Job, VerifierProcess
    processes = [
        VerifierProcess(verifiers_module="hostile_verifiers", memory_bytes=64 << 20) for _ in "ab"
    ]
    for process in processes:
        process.wait_until_warm(30)
    print(*[process.pid for process in processes], flush=True)
    processes[0].judge(Job(verifier="touch_and_hang", response="", answer=sys.argv[1]), 600)
"""


def test_idle_and_hung_workers_die_with_a_killed_service(eventually, tmp_path):
    hung = tmp_path / "hung"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER), str(hung)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
    )
    with owner:
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        eventually(hung.exists, "one worker hangs")
        owner.kill()
    eventually(lambda: not any(map(alive, pids)), "the workers of a killed service die")
