"""`python -m services.reward.verify`, the program behind `dapod verify`."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.reward.stream import LINES_PER_WORKER, MAX_LINE_BYTES

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


@pytest.fixture
def start():
    """Start the program; killed at the end if it still runs."""
    started = []

    def run(*arguments, more_path=HERE):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "services.reward.verify", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(more_path)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait(10)
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def verify(start):
    """All lines at once; returns (exit status, verdicts, stderr)."""

    def run(lines, *arguments):
        out, err = (process := start(*arguments)).communicate(lines, timeout=60)
        return process.returncode, [json.loads(line) for line in out.splitlines()], err.decode()

    return run


def line(response, answer="12", **more):
    return json.dumps({"response": response, "answer": answer, **more}).encode() + b"\n"


def test_a_verdict_says_all_and_comes_in_the_order_of_the_lines(verify):
    lines = b"".join([line("12."), line("13", id=7), line("twelve"), line("12", "x")])
    status, verdicts, said = verify(lines, "--verifier", "integer", "--workers", "2")
    assert (status, said) == (0, "")
    assert [list(verdict.values())[:4] for verdict in verdicts] == [
        ["correct", True, 1.0, "12"],
        ["wrong", False, -1.0, "13"],
        ["unparsed", False, -1.0, None],
        ["error", None, None, None],
    ]
    names = ["outcome", "correct", "reward", "extracted", "seconds"]
    assert [list(verdict) for verdict in verdicts[:3]] == [names] * 3
    assert verdicts[3]["error"] == "ValueError: the key 'x' is not an integer"
    assert all(verdict["seconds"] > 0 for verdict in verdicts)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"nonsense\n", "malformed line: Expecting value"),
        (b"\n", "malformed line: Expecting value"),
        (b"[1]\n", 'malformed line: not an object like {"response": "…", "answer": "…"}'),
        (b'{"answer": "12"}\n', "malformed line: 'response' is missing"),
        (b'{"response": "12", "answer": 12}\n', "malformed line: 'answer' is not a text"),
        (b'{"response": "\xff"}\n', "malformed line: 'utf-8' codec can't decode"),
        (b"[" * 200_000 + b"\n", "malformed line: maximum recursion depth exceeded"),
        (b"x" * (MAX_LINE_BYTES + 1) + b"\n", f"malformed line: longer than {MAX_LINE_BYTES}"),
    ],
)
def test_a_malformed_line_is_an_error_with_its_reason_and_the_stream_goes_on(verify, bad, said):
    status, verdicts, _ = verify(line("12") + bad + line("12"), "--verifier", "integer")
    assert status == 0
    assert [verdict["outcome"] for verdict in verdicts] == ["correct", "error", "correct"]
    assert said in verdicts[1]["error"]
    assert (verdicts[1]["correct"], verdicts[1]["reward"]) == (None, None)


def test_the_last_line_needs_no_end_and_no_line_gives_no_verdict(verify):
    assert len(verify(line("12").strip(), "--verifier", "integer")[1]) == 1
    assert verify(b"", "--verifier", "integer") == (0, [], "")


def test_a_verdict_is_written_before_the_next_line_is_there(start):
    process = start("--verifier", "integer")
    for response in ("12", "13", "12"):
        process.stdin.write(line(response))
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["extracted"] == response
    assert process.communicate(timeout=20) == (b"", b"")


def test_a_hang_ends_at_the_deadline_and_keeps_its_place(verify):
    lines = line("1") + line("hang") + line("2") * (3 * LINES_PER_WORKER)
    name = "python:hostile_verifiers:hang_if_told"
    status, verdicts, _ = verify(lines, "--verifier", name, "--deadline-seconds", "0.3")
    assert status == 0
    assert [v["outcome"] for v in verdicts[:3]] == ["correct", "timeout", "correct"]
    assert verdicts[1]["error"] == "no answer within 0.3 s"
    assert 0.6 <= verdicts[1]["seconds"] < 5
    assert len(verdicts) == 2 + 3 * LINES_PER_WORKER


def test_it_ends_when_nobody_reads_the_verdicts(start):
    process = start("--verifier", "integer")
    process.stdin.write(line("12"))
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    process.stdin.write(line("12"))  # the verdict of this one meets the closed pipe
    process.stdin.flush()
    process.stdin.write(line("12") * 10)
    process.stdin.close()
    assert process.wait(20) == 1
    assert process.stderr.read() == b""


def test_a_verifier_that_loads_for_long_is_waited_for_by_its_name(start, tmp_path, slow_to_load):
    process = start("--verifier", slow_to_load, more_path=tmp_path)
    said = process.stderr.readline().decode()
    assert said == "dapod: waiting: 'python:slow:judge' is loading, for 600 s at most\n"
    (tmp_path / "loads").touch()
    out, err = process.communicate(line("12"), timeout=20)
    assert (json.loads(out)["outcome"], err) == ("correct", b"")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--verifier", "integr"], "dapod: --verifier 'integr' is not a verifier; use one of "),
        (["--verifier", "python:no:f"], "dapod: --verifier 'python:no:f': importing 'no' failed"),
        ([], "dapod: the following arguments are required: --verifier"),
        (["--verifier", "integer", "--workers", "0"], "dapod: argument --workers: '0' is not"),
        *(
            (
                ["--verifier", "integer", "--deadline-seconds", text],
                f"--deadline-seconds: '{text}' is not a number above 0 and at most 280",
            )
            for text in ("nan", "inf", "1e10", "301", "0", "soon")
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_2(verify, arguments, said):
    status, verdicts, err = verify(b"", *arguments)
    assert (status, verdicts) == (2, [])
    assert said in err
    assert len(err.splitlines()) == 1
