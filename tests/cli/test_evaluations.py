"""Following evaluations.jsonl, and how an evaluation is told."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from dapod.cli.evaluations import EvaluationLog, EvaluationRow, read_evaluations
from dapod.cli.progress import Progress, evaluation_of
from tests.cli.test_progress import Recorder

ROW = EvaluationRow(
    policy_version=4,
    samples=4,
    problems=64,
    problems_done=64,
    avg=0.43,
    low=0.38,
    high=0.48,
    dropped_because=None,
    seconds=72.0,
    time_unix=1.7e9,
)


def evaluation_row(**changes: Any) -> EvaluationRow:
    return dataclasses.replace(ROW, **changes)


def line(row: EvaluationRow) -> str:
    """As the trainer writes it, with one key that nobody here needs."""
    raw = dataclasses.asdict(row)
    for key, name in (("avg", "avg_at_k"), ("low", "avg_at_k_low"), ("high", "avg_at_k_high")):
        raw[name] = raw.pop(key)
    return json.dumps(raw | {"lineage": "9f2c"}) + "\n"


def test_an_evaluation_is_one_line() -> None:
    assert evaluation_of(ROW) == "evaluation v4: 0.43 (0.38 to 0.48)  avg@4  64 problems  1m12s"


def test_one_that_was_dropped_says_why() -> None:
    row = evaluation_row(problems_done=0, avg=None, dropped_because="v6 fell due")
    assert evaluation_of(row) == "evaluation v4: -  0 of 64 problems: v6 fell due"


def test_one_without_a_judgement_says_so() -> None:
    assert "no answer could be judged" in evaluation_of(evaluation_row(avg=None))


def test_each_row_is_news_once_and_again_only_when_it_is_another_one(tmp_path: Path) -> None:
    file = tmp_path / "evaluations.jsonl"
    log = EvaluationLog(file)
    assert log.news() == []
    file.write_text(line(ROW) + line(evaluation_row(policy_version=6))[:20])
    assert log.news() == [ROW] and log.news() == []
    again = evaluation_row(time_unix=1.8e9)
    file.write_text(line(again))
    assert log.news() == [again]
    assert EvaluationLog(file).news() == [], "a run that goes on tells no old news"
    assert read_evaluations(file) == [again]


def test_they_are_said(tmp_path: Path) -> None:
    screen = Recorder()
    Progress(screen=screen, steps_total=4).evaluations([ROW])
    assert screen.lines == [evaluation_of(ROW)]
