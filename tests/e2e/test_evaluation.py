"""A run that evaluates its policy, with everything real: one pod, every second version."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.live_run import QUICKSTART, End, LiveRun, read_rows

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

STEPS, PROBLEMS, SAMPLES = 3, 12, 2
VERSIONS = [0, 2, 3]


@dataclass(frozen=True, kw_only=True)
class Finished:
    end: End
    run_dir: Path
    rows: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    buffer_log: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Finished]:
    folder = tmp_path_factory.mktemp("evaluation")
    rows = (QUICKSTART.parent / "one_digit_arithmetic.jsonl").read_text().splitlines(keepends=True)
    (folder / "problems.jsonl").write_text("".join(rows[5::16][:PROBLEMS]))
    settings = {
        "algorithm.group_size": 4,
        "algorithm.prompts_per_step": 2,
        "algorithm.prompts_per_update": 2,
        "evaluation.every_steps": 2,
        "evaluation.samples": SAMPLES,
        "evaluation.top_p": 0.7,
        "evaluation.data.path": folder / "problems.jsonl",
        "evaluation.data.prompt_column": "question",
        "evaluation.data.template": "{prompt} Reply with only the number.",
        "evaluation.data.verifier": "integer",
    }
    with LiveRun.start(folder / "run", steps=STEPS, settings=settings) as run:
        end = run.wait_until_ended()
        assert end.status == 0, run.story()
        yield Finished(
            end=end,
            run_dir=run.run_dir,
            rows=run.rows(),
            evaluations=read_rows(run.run_dir / "evaluations.jsonl"),
            buffer_log=run.log("buffer"),
        )


def test_version_0_every_second_one_and_the_last_are_evaluated_once(finished: Finished) -> None:
    assert [row["policy_version"] for row in finished.evaluations] == VERSIONS
    for row in finished.evaluations:
        assert (row["problems"], row["problems_done"], row["samples"]) == (
            PROBLEMS,
            PROBLEMS,
            SAMPLES,
        )
        assert row["dropped_because"] is None and row["verifications_failed"] == 0
        assert 0 <= row["avg_at_k_low"] <= row["avg_at_k"] <= row["avg_at_k_high"] <= 1
        assert row["avg_at_k"] <= row["pass_at_k"] and row["seconds"] > 0
        assert 1 <= row["response_tokens_mean"] <= 16


def test_no_step_counts_anything_of_an_evaluation(finished: Finished) -> None:
    leased = re.findall(r"group=(\S+) leased as", finished.buffer_log)
    training = [group for group in leased if not group.startswith("v")]
    assert len(leased) - len(training) == PROBLEMS * len(VERSIONS)
    assert sum(row["groups_leased"] for row in finished.rows) == len(training)
    for row in finished.rows:
        groups = ("groups_kept", "groups_all_correct", "groups_all_wrong", "groups_failed")
        assert row["tokens_generated"] <= sum(row[name] for name in groups) * 4 * 16
    summary = json.loads((finished.run_dir / "summary.json").read_text())
    assert summary["conservation_error"] == 0
    assert summary["groups"]["trained"] == 2 * STEPS


def test_the_time_that_the_only_pod_evaluated_is_shown(finished: Finished) -> None:
    seconds = [row["seconds_evaluate"] for row in finished.rows]
    assert seconds[0] > 0 and seconds[2] > 0
    assert all(row["seconds_evaluate"] <= row["seconds_total"] + 60 for row in finished.rows)
    assert sum(seconds) <= sum(row["seconds"] for row in finished.evaluations) + 1


def test_the_command_tells_each_evaluation_and_where_they_are(finished: Finished) -> None:
    told = re.findall(r"^evaluation v(\d+): ", finished.end.output, re.M)
    assert [int(version) for version in told] == VERSIONS
    assert str(finished.run_dir / "evaluations.jsonl") in finished.end.output
