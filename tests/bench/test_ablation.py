"""The ablation's table: which steps of a run count, and what is said of unfinished rows."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.ablation.__main__ import file_of, finished
from bench.ablation.report import draw, table, until_the_budget
from bench.ablation.rows import GROUP_SIZE, ROWS, Row
from bench.ablation.runs import is_done, read

RECORDED = Path(__file__).parents[1] / "cli" / "steps.jsonl"
"""Lines as a real run wrote them; the tests change single numbers."""

BUDGET = 1000
ROW = ROWS[0]


def line(tokens: int, **changes: object) -> str:
    """A step that generated so many tokens in 16 rollouts, two groups."""
    step = json.loads(RECORDED.read_text().splitlines()[0])
    step |= {
        "tokens_generated": tokens,
        "response_tokens_mean": tokens / 16,
        "accuracy": 0.5,
        "truncated_ratio": 0.25,
        "entropy_nats": 1.0,
        "groups_all_correct": 0,
        "groups_all_wrong": 0,
    }
    return json.dumps(step | changes) + "\n"


def write(file: Path, *lines: str) -> Path:
    file.write_text("".join(lines))
    return file


def cells(row: Row, directory: Path, seeds: int) -> list[str]:
    """Of its line in the table."""
    lines = table(ROWS, finished(directory, BUDGET, seeds), BUDGET, seeds).splitlines()
    (found,) = (line for line in lines if line.startswith(f"| {row.title} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_tokens_add_up_and_a_step_that_sampled_nothing_is_left_out(tmp_path: Path) -> None:
    idle = line(16, tokens_generated=0)
    steps = read(write(tmp_path / "a.jsonl", line(160), idle, line(320, groups_all_correct=1)))
    assert [step.tokens for step in steps] == [160, 480]
    assert [step.rollouts for step in steps] == pytest.approx([16, 16])
    assert [step.informative for step in steps] == pytest.approx([1.0, 1 - GROUP_SIZE / 16])


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == []
    half = line(320)[:40]
    assert [s.tokens for s in read(write(tmp_path / "a.jsonl", line(160), half))] == [160]


@pytest.mark.parametrize(
    ("tokens", "done"), [([], False), ([999], False), ([1000], True), ([600, 400], True)]
)
def test_a_run_is_done_when_its_tokens_reach_the_budget(
    tmp_path: Path, tokens: Sequence[int], done: bool
) -> None:
    assert is_done(write(tmp_path / "a.jsonl", *map(line, tokens)), BUDGET) is done


@pytest.mark.parametrize(
    ("tokens", "counted"),
    [
        ([600, 400, 500], [600, 1000]),  # spent to the token: the next step began after it
        ([600, 399, 500, 500], [600, 999, 1499]),  # the step that crosses the line began before it
        ([1500, 500], [1500]),
        ([300], [300]),
    ],
)
def test_steps_count_that_began_before_the_budget_was_spent(
    tmp_path: Path, tokens: Sequence[int], counted: Sequence[int]
) -> None:
    steps = read(write(tmp_path / "a.jsonl", *map(line, tokens)))
    assert [step.tokens for step in until_the_budget(steps, BUDGET)] == counted


def test_a_row_has_its_means_over_seeds_and_their_range(tmp_path: Path) -> None:
    # Of each run the steps from 800 tokens on are at the budget; the last line is beyond it.
    beyond = line(1000, accuracy=0.0, truncated_ratio=1.0)
    for seed, accuracy in enumerate((0.6, 0.8)):
        last = [line(200, accuracy=accuracy), line(300, accuracy=accuracy)]
        write(file_of(tmp_path, ROW.key, seed), line(700, accuracy=0.0), *last, beyond)
    assert cells(ROW, tmp_path, seeds=2) == [
        *(ROW.title, "2"),
        "0.70 (0.60–0.80)",
        "0.47 (0.40–0.53)",
        *("0.25 (0.25–0.25)", "1.00 (1.00–1.00)", "1.00 (1.00–1.00)"),
        *("3 (3–3)", f"{ROW.paper} %"),
    ]


def test_within_the_last_fifth_steps_weigh_by_their_rollouts(tmp_path: Path) -> None:
    many = line(480, accuracy=1.0, response_tokens_mean=10.0)  # 48 rollouts beside 16
    write(file_of(tmp_path, ROW.key, 0), line(500), line(320, accuracy=0.0), many)
    assert cells(ROW, tmp_path, seeds=1)[2] == "0.75"


def test_a_row_with_too_few_finished_runs_is_marked_partial(tmp_path: Path) -> None:
    write(file_of(tmp_path, ROW.key, 0), line(1000))
    write(file_of(tmp_path, ROW.key, 1), line(999))
    assert cells(ROW, tmp_path, seeds=3)[1:3] == ["1 of 3, partial", "0.50"]
    assert cells(ROWS[1], tmp_path, seeds=3)[1:3] == ["0 of 3, partial", "not run"]


def test_an_unfinished_table_is_drawn_too(tmp_path: Path) -> None:
    write(file_of(tmp_path, ROW.key, 0), line(600), line(600))
    draw(ROWS, finished(tmp_path, BUDGET, 3), BUDGET, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 0
