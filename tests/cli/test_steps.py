"""Following steps.jsonl."""

import json
from pathlib import Path

import pytest

from dapod.cli.steps import StepLog, read_steps

RECORDED = Path(__file__).with_name("steps.jsonl")


def lines() -> list[str]:
    return RECORDED.read_text().splitlines(keepends=True)


def test_the_recorded_run_is_read() -> None:
    rows = read_steps(RECORDED)
    assert [row.step for row in rows] == list(range(len(rows)))
    assert 0 < rows[0].informative < 1


def test_only_whole_lines_are_news(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    log = StepLog(file)
    file.write_text(lines()[0] + lines()[1][:40])
    assert [row.step for row in log.news()] == [0]
    file.write_text(lines()[0] + lines()[1])
    assert [row.step for row in log.news()] == [1]
    assert log.news() == []


def test_a_resumed_run_tells_no_old_news(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text("".join(lines()[:2]))
    log = StepLog(file)
    assert log.news() == []
    assert len(log.rows) == 2


def test_steps_trained_again_after_a_cut_are_news(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text("".join(lines()[:3]))
    log = StepLog(file)
    again = json.loads(lines()[2]) | {"time_unix": 9e9}
    file.write_text("".join(lines()[:2]))
    assert log.news() == []
    file.write_text("".join(lines()[:2]) + json.dumps(again) + "\n")
    assert [row.step for row in log.news()] == [2]


def test_a_row_without_a_key_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text('{"step": 0}\n')
    with pytest.raises(KeyError, match="accuracy"):
        read_steps(file)
