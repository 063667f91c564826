"""One worker process: how it ends is told apart, and nothing outlives its owner."""

import os
import resource
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path

import pytest

from dapod.types import Outcome
from services.reward.process import BrokenWorker, Job
from services.reward.template import VerifierRefused, WorkerTemplate


def alive(pid):
    """A zombie whose parent is gone counts as dead: nobody may be left to reap it here."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def job(verifier, response="12", answer="12"):
    return Job(verifier=f"python:hostile_verifiers:{verifier}", response=response, answer=answer)


@pytest.fixture
def start():
    """Workers of a new template each; ended at the end."""
    with ExitStack() as started:

        def warm(*verifiers):
            template = WorkerTemplate(verifiers=verifiers, memory_bytes=64 << 20)
            started.callback(template.close)
            template.wait_until_warm(30)
            process = template.start_worker()
            started.callback(process.close)
            return process

        yield warm


@pytest.fixture
def many_descriptors():
    """This process holds more of them than `select.select` can name."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while held.enter_context(open(os.devnull)).fileno() < 1024:
            continue
        yield


@pytest.fixture
def process(start, hostile):
    return start(*hostile)


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
        ("surrogate", Outcome.ERROR, "ValueError: 12?"),
        ("score", Outcome.ERROR, "TypeError: returned 0.5, not True, False, None"),
        ("forge", Outcome.ERROR, "over 65536 bytes"),
    ],
)
def test_a_failure_is_told_apart_and_ends_the_worker(process, verifier, outcome, detail):
    # Only a hang needs a short deadline; the others must not be cut off on a busy machine.
    verification = process.judge(job(verifier, "raise"), 0.3 if "hang" in verifier else 20)
    assert verification.outcome is outcome
    assert detail in verification.detail
    assert len(verification.detail) < 1000
    assert not process.alive


def test_prints_go_nowhere_and_a_huge_answer_is_cut(capfd, start, hostile):
    # Started here: what a fixture starts writes past capfd.
    verification = start(*hostile).judge(job("chatter"), 20)
    assert verification.outcome is Outcome.CORRECT
    assert len(verification.extracted) == 300
    assert capfd.readouterr() == ("", "")


def test_text_of_any_kind_and_size_crosses_the_socket(process):
    for text in ("\0\r\n\u2028\U0001f600\ud800", "x" * 2_000_000, '{"correct": true}\n'):
        assert process.judge(job("honest", text, text), 20).outcome is Outcome.CORRECT


def test_a_worker_is_served_by_a_process_with_many_descriptors(many_descriptors, start, hostile):
    process = start(*hostile)
    assert process.alive
    assert process.judge(job("honest"), 20).outcome is Outcome.CORRECT
    assert process.judge(job("leave"), 20).outcome is Outcome.KILLED
    assert not process.alive


def test_a_worker_killed_from_outside_is_an_outcome(process):
    os.kill(process.pid, 9)
    verification = process.judge(job("honest"), 20)
    assert verification.outcome is Outcome.KILLED
    assert "exit status -9" in verification.detail


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("integr", "'integr' is not a verifier; use one of dapo_math, .*gsm8k, integer, "),
        ("integer:3", "'integer:3' is not a verifier"),
        ("dapo_math:box", "'dapo_math:box' is not a verifier; use one of .*dapo_math:boxed, gsm8k"),
        ("python", "'python' is not a verifier; use one of .*python:<module>:<function>"),
        ("python:os", "'python:os' is not a verifier; use one of .*python:<module>:<function>"),
        ("python:os:nope", "'python:os:nope': module 'os' has no function 'nope'"),
        ("python:os:name", "'python:os:name': module 'os' has no function 'name'"),
        ("python:no_such:f", "'python:no_such:f': importing 'no_such' failed with ModuleNotFound"),
        ("python:broken:f", "'python:broken:f': importing 'broken' failed with SystemExit: 7"),
    ],
)
def test_a_name_that_gives_no_verifier_is_refused_with_a_sentence(
    name, said, start, tmp_path, monkeypatch
):
    (tmp_path / "broken.py").write_text("raise SystemExit(7)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(VerifierRefused, match=said):
        start(name)


def test_a_verifier_that_loads_too_long_is_refused_with_its_name_and_the_limit(slow_to_load):
    template = WorkerTemplate(verifiers=["integer", slow_to_load], memory_bytes=64 << 20)
    loaded = []
    with pytest.raises(VerifierRefused, match=r"^'python:slow:judge' did not load within 0\.5 s$"):
        template.wait_until_warm(0.5, loaded.append)
    template.close()
    assert loaded == ["integer", slow_to_load]


def test_a_verifier_that_kills_its_process_while_it_loads_is_named(start, tmp_path, monkeypatch):
    (tmp_path / "fatal.py").write_text("import os; os._exit(9)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BrokenWorker, match=r"exit status 9\) while 'python:fatal:f' was loading"):
        start("python:fatal:f")


def test_what_a_module_prints_while_imported_is_no_result(start, tmp_path, monkeypatch, capfd):
    (tmp_path / "chatty.py").write_text("print('hello')\ndef f(response, answer): return True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    start("python:chatty:f")
    assert capfd.readouterr() == ("", "hello\n")


@pytest.mark.parametrize("name", ["dapo_math", "dapo_math:boxed", "gsm8k", "integer"])
def test_a_lean_verifiers_worker_imports_no_heavy_library(name):
    script = (
        "import sys; from services.reward import worker; worker.load(sys.argv[1]);"
        "print(*{'sympy', 'numpy', 'math_verify', 'reasoning_gym', 'grpc'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, name], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_workers_of_one_template_are_processes_of_their_own(hostile):
    template = WorkerTemplate(verifiers=hostile, memory_bytes=64 << 20)
    template.wait_until_warm(30)
    assert set(template.verifiers) == set(hostile)
    first, second = template.start_worker(), template.start_worker()
    assert first.judge(job("hang"), 0.2).outcome is Outcome.TIMEOUT
    assert second.judge(job("honest"), 20).outcome is Outcome.CORRECT
    assert not alive(first.pid) and alive(second.pid)
    template.close()
    assert not alive(second.pid)
    with pytest.raises(BrokenWorker):
        template.start_worker()
    second.close()
    first.close()


@pytest.mark.parametrize(
    ("response", "outcome"), [("hang", Outcome.TIMEOUT), ("leave", Outcome.KILLED)]
)
def test_what_a_verifier_started_dies_with_its_worker(
    process, tmp_path, eventually, response, outcome
):
    note = tmp_path / "pid"
    assert process.judge(job("start", response, str(note)), 3).outcome is outcome
    started = int(note.read_text())
    eventually(lambda: not alive(started), "what the verifier started is gone")


def test_what_idle_workers_verifiers_started_dies_when_the_pool_closes(
    hostile, tmp_path, eventually
):
    template = WorkerTemplate(verifiers=hostile, memory_bytes=64 << 20)
    template.wait_until_warm(30)
    worker = template.start_worker()
    started = int(worker.judge(job("start", answer=str(tmp_path / "pid")), 20).extracted)
    assert alive(started)
    template.close()
    eventually(lambda: not alive(started), "what the verifier started is gone")
    worker.close()


def test_a_worker_that_has_left_its_group_is_killed_all_the_same(process, tmp_path):
    note = tmp_path / "pid"
    assert process.judge(job("start", "move", str(note)), 20).outcome is Outcome.CORRECT
    process.close()
    assert not alive(process.pid)
    os.kill(int(note.read_text()), 9)


def test_workers_die_with_a_killed_template(hostile, eventually):
    template = WorkerTemplate(verifiers=hostile, memory_bytes=64 << 20)
    template.wait_until_warm(30)
    worker = template.start_worker()
    os.kill(template.pid, 9)
    eventually(lambda: not alive(worker.pid), "the worker dies with its template")
    assert worker.judge(job("honest"), 20).outcome is Outcome.KILLED
    worker.close()
    template.close()


OWNER = """
    import sys
    from services.reward.process import Job
    from services.reward.template import WorkerTemplate
    name = "python:hostile_verifiers:touch_and_hang"
    template = WorkerTemplate(verifiers=[name], memory_bytes=64 << 20)
    template.wait_until_warm(30)
    processes = [template.start_worker() for _ in "ab"]
    print(template.pid, *[process.pid for process in processes], flush=True)
    processes[0].judge(Job(verifier=name, response="", answer=sys.argv[1]), 600)
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
        assert len(pids) == 3 and all(map(alive, pids))
        eventually(hung.exists, "one worker hangs")
        owner.kill()
    eventually(lambda: not any(map(alive, pids)), "the workers of a killed service die")
