"""`dapod evaluate` of a run, with the real engine and verifiers, killed half-way and gone on."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.waiting import wait_until
from tests.e2e.finished_run import Finished
from tests.e2e.live_run import QUICKSTART, ROOT, read_rows
from tests.e2e.run_processes import RunProcesses

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PROBLEMS, SAMPLES = 16, 4
READY_SECONDS = 240.0
"""On a busy machine; 16 s on a free one."""


class Evaluation:
    """16 problems of the quickstart's, 4 answers each, two problems at a time."""

    def __init__(self, run_dir: Path, directory: Path) -> None:
        rows = (QUICKSTART.parent / "one_digit_arithmetic.jsonl").read_text().splitlines()
        data = directory / "sixteen.jsonl"
        data.write_text("\n".join(rows[::12][:PROBLEMS]) + "\n")
        self.out = directory / "out"
        self.processes = RunProcesses()
        self.arguments = [
            *("--model", run_dir, "--data", data, "--out", self.out, "--samples", SAMPLES),
            *("--verifier", "integer", "--max-response-tokens", 16, "--top-p", 1.0),
            *("--set", "data.prompt_column=question"),
            *("--set", 'data.template="{prompt} Reply with only the number."'),
            *("--set", "rollout.memory_gib=0.5", "--set", "rollout.groups_in_flight=2"),
        ]

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "dapod.cli", "evaluate", *map(str, self.arguments)],
            cwd=ROOT,
            env={**os.environ, **self.processes.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()
            self.processes.end_all()

    def records(self) -> list[dict[str, object]]:
        return read_rows(self.out / "problems.jsonl")


def test_killed_half_way_it_goes_on_and_asks_each_problem_once(
    finished: Finished, tmp_path: Path
) -> None:
    evaluation = Evaluation(finished.run_dir, tmp_path)
    with evaluation.running() as process:
        wait_until(lambda: len(evaluation.records()) >= 4, "a few problems", READY_SECONDS)
        evaluation.processes.note(process.pid)
        process.kill()
        process.wait()
        wait_until(lambda: not evaluation.processes.alive(), "nothing is left running", 30)
    before = evaluation.records()
    assert 4 <= len(before) < PROBLEMS
    with evaluation.running() as process:
        out, err = process.communicate(timeout=READY_SECONDS)
        assert (process.returncode, err) == (0, ""), out
        assert evaluation.processes.alive() == []
    records = evaluation.records()
    assert records[: len(before)] == before
    assert sorted(record["problem"] for record in records) == list(range(PROBLEMS))
    summary = json.loads((evaluation.out / "summary.json").read_text())
    assert summary["answers_judged"] == PROBLEMS * SAMPLES
    # The newest policy, in an engine that has seen no other: an empty one would answer nothing.
    assert 0.05 < summary["metrics"][f"avg@{SAMPLES}"]["value"] <= 1.0
    _texts_say_what_was_counted(evaluation, records)


def _texts_say_what_was_counted(evaluation: Evaluation, records: list[dict[str, object]]) -> None:
    texts = read_rows(evaluation.out / "responses.jsonl")
    assert [line["problem"] for line in texts] == [record["problem"] for record in records]
    for line, record in zip(texts, records, strict=True):
        assert len(line["responses"]) == SAMPLES
        assert sum(r["correct"] for r in line["responses"]) == record["correct"]
        assert sum(r["tokens"] for r in line["responses"]) == record["tokens"]
        for response in line["responses"]:
            if response["correct"]:
                assert response["extracted"] == line["answer"]
