"""The whole command over the engine double and the real verifiers: results, kills, refusals."""

import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dapod.cli.processes import carrying, kill_all
from tests.cli.conftest import ROOT
from tests.cli.evaluate.conftest import FLAGS
from tests.cli.waiting import wait_until


class Evaluation:
    """The command in `directory`; every process it starts carries its mark."""

    def __init__(self, model: Path, rows: Path, out: Path) -> None:
        self.out = out
        self.mark = {"DAPOD_TEST_MARK": uuid.uuid4().hex}
        self.arguments = ["--model", model, "--data", rows, "--out", out, "--samples", "2", *FLAGS]

    @contextmanager
    def running(self, *more: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [
                sys.executable,
                Path(__file__).with_name("fake_evaluate.py"),
                *map(str, self.arguments),
                *more,
            ],
            env={**os.environ, **self.mark, **variables, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def run(self, *more: str, **variables: str) -> tuple[int, str, str]:
        with self.running(*more, **variables) as process:
            out, err = process.communicate(timeout=60)
            return process.returncode, out, err

    def finished(self) -> list[int]:
        """Problems that have a whole line."""
        file = self.out / "problems.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line)["problem"] for line in text[: text.rfind("\n") + 1].splitlines()]

    def alive(self) -> list[int]:
        return carrying(self.mark)


@pytest.fixture
def evaluation(model: Path, rows: Path, tmp_path: Path) -> Iterator[Evaluation]:
    evaluation = Evaluation(model, rows, tmp_path / "out")
    yield evaluation
    kill_all(evaluation.mark)


def test_every_problem_is_asked_judged_and_counted(evaluation: Evaluation) -> None:
    status, out, err = evaluation.run("--pass-at", "1,2")
    assert (status, err) == (0, ""), out
    assert sorted(evaluation.finished()) == list(range(9))
    # The double says 12 to everything, which is right for three of the nine problems.
    for line in ("avg@2   0.3333", "pass@1  0.3333", "pass@2  0.3333", "maj@2   0.3333"):
        assert line in out
    assert "18 answers: 12 wrong, 6 correct" in out and "9/9 problems" in out
    summary = json.loads((evaluation.out / "summary.json").read_text())
    assert summary["metrics"]["avg@2"]["value"] == pytest.approx(1 / 3)
    assert summary["outcomes"] == {"wrong": 12, "correct": 6}
    assert evaluation.alive() == []
    texts = (evaluation.out / "responses.jsonl").read_text().splitlines()
    assert [json.loads(line)["problem"] for line in texts] == evaluation.finished()


def test_a_row_that_is_repeated_is_one_problem(evaluation: Evaluation, rows: Path) -> None:
    rows.write_text(rows.read_text() * 3)
    status, out, err = evaluation.run()
    assert (status, err) == (0, ""), out
    assert "27 rows read, 18 repeated, 9 kept" in out and "18 answers" in out


def test_killed_half_way_it_leaves_nothing_and_goes_on_with_what_is_open(
    evaluation: Evaluation,
) -> None:
    with evaluation.running(FAKE_ENGINE_HOLDS_AT="4") as process:
        wait_until(lambda: len(evaluation.finished()) == 4, "four finished problems", 40)
        process.kill()
        process.wait()
        wait_until(lambda: not evaluation.alive(), "the reaper has killed everything")
    before = evaluation.finished()
    status, out, err = evaluation.run()
    assert (status, err) == (0, ""), out
    assert "goes on after 4 problems" in out
    assert evaluation.finished()[:4] == before
    assert sorted(evaluation.finished()) == list(range(9)), "each once"
    starts = [json.loads(line)["start"] for line in _lines(evaluation.out / "problems.jsonl")]
    assert starts == [1] * 4 + [2] * 5


def test_finished_it_says_the_result_again_and_starts_nothing(evaluation: Evaluation) -> None:
    first = evaluation.run()[1]
    status, again, _ = evaluation.run(FAKE_ENGINE_FAILS="1")
    assert status == 0 and "nothing to ask" in again
    assert first[first.index("avg@2   ") :] == again[again.index("avg@2   ") :]


def test_ctrl_c_stops_everything_and_says_how_to_go_on(evaluation: Evaluation) -> None:
    with evaluation.running(FAKE_ENGINE_HOLDS_AT="2") as process:
        wait_until(lambda: len(evaluation.finished()) == 2, "two finished problems", 40)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (130, "")
    assert "stopped by SIGINT after 2 of 9 problems; nothing is left running" in out
    assert "go on with: dapod evaluate" in out and "--samples 2" in out
    assert evaluation.alive() == []


def test_an_engine_that_dies_on_the_way_is_started_again(evaluation: Evaluation) -> None:
    with evaluation.running(FAKE_ENGINE_HOLDS_AT="4") as process:
        for finished in (4, 8):
            wait_until(lambda n=finished: len(evaluation.finished()) == n, f"{finished} done", 40)
            services = json.loads((evaluation.out / "services.json").read_text())
            os.kill(services["engine"]["pid"], signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
    assert "engine ended (killed by SIGKILL" in out and "restart 1 of at most 5" in out
    assert sorted(evaluation.finished()) == list(range(9)), "each once"


def test_answers_that_cannot_be_judged_are_said_to_be_none(evaluation: Evaluation) -> None:
    verifier = "python:tests.reward.hostile_verifiers:refuse"
    status, out, err = evaluation.run("--verifier", verifier)
    assert (status, err) == (0, ""), out
    assert "NOTHING WAS JUDGED" in out and "18 answers: 18 error" in out
    summary = json.loads((evaluation.out / "summary.json").read_text())
    assert summary["metrics"] == {}
    assert summary["problems_without_a_judged_answer"] == list(range(9))


def test_an_engine_that_does_not_start_is_not_tried_again(evaluation: Evaluation) -> None:
    status, out, err = evaluation.run(FAKE_ENGINE_FAILS="1")
    assert (status, err) == (1, "")
    assert "engine ended (exit status 1: no memory for the model) before it was ready" in out
    assert out.count("no memory for the model") == 2, "the reason, and the end of the log"
    assert "restart" not in out and "go on with" in out
    assert evaluation.alive() == []


def test_an_unknown_verifier_is_one_sentence(evaluation: Evaluation) -> None:
    status, _, err = evaluation.run("--verifier", "nosuch")
    assert status == 2 and "data.verifier = 'nosuch' is not a verifier" in err
    assert err.startswith("dapod: ") and err.count("\n") == 1
    assert not evaluation.out.exists(), "said before anything was started"
    assert evaluation.alive() == []


def test_another_setting_in_the_same_directory_is_refused(evaluation: Evaluation) -> None:
    evaluation.run()
    status, _, err = evaluation.run("--samples", "3")
    assert status == 2
    assert "holds another evaluation (evaluation.samples is 2 there and 3 here)" in err


def test_a_port_in_use_is_refused_before_anything_starts(evaluation: Evaluation) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, out, err = evaluation.run(DAPOD_GRPC_PORT=port)
    assert (status, out) == (2, "")
    assert f"port {port} (of reward, from DAPOD_GRPC_PORT={port}) is in use" in err


def test_rows_without_the_columns_are_refused(evaluation: Evaluation) -> None:
    status, _, err = evaluation.run("--set", "data.answer_column=solution")
    assert status == 2 and "has no column 'solution'" in err


def test_a_context_too_short_is_refused(evaluation: Evaluation) -> None:
    status, _, err = evaluation.run("--max-response-tokens", "60")
    assert status == 2 and "what the model's context of 64 tokens leaves beside" in err


def test_prompts_beyond_the_context_are_left_out_when_told_so(
    evaluation: Evaluation, rows: Path
) -> None:
    long = {"prompt": "what is problem " * 20 + "?", "answer": "12"}
    rows.write_text(rows.read_text() + json.dumps(long) + "\n")
    status, _, err = evaluation.run()
    assert status == 2 and "1 of 10 prompts are longer than what the model's context of" in err
    assert 'lower that (--max-response-tokens) to 3, or set data.long_prompts = "filter"' in err
    status, out, err = evaluation.run("--set", "data.long_prompts=filter")
    assert (status, err) == (0, ""), out
    assert "10 rows read, 1 filtered for their length, 9 kept" in out
    assert "NOT ASKED: 1 of 10 problems" in out and "18 answers" in out
    summary = json.loads((evaluation.out / "summary.json").read_text())
    assert summary["data"].endswith("10 rows read, 1 filtered for their length, 9 kept")


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()
