"""summary.json, curves.png and the last lines, of a recorded run."""

import json
from pathlib import Path

from dapod.cli import report
from dapod.cli.answers import Answer, questions
from dapod.cli.curves import draw_curves
from dapod.cli.runner import RunEnd
from dapod.cli.status import RunStatus
from dapod.cli.steps import read_steps
from dapod.cli.summary import Summary, summarise
from dapod.config import load
from tests.cli.test_evaluations import evaluation_row

ROWS = read_steps(Path(__file__).with_name("steps.jsonl"))
EVALUATED = [
    evaluation_row(),
    evaluation_row(policy_version=2, avg=None, low=None, high=None),
]


def summary_of(config_file: Path, status: RunStatus | None, rows=ROWS) -> Summary:
    end = RunEnd(
        ended="finished", status=status, seconds=200.0, restarts={"buffer": 0, "trainer": 2}
    )
    return summarise(
        config=load(config_file), run_id="tiny-1", run_dir=config_file.parent, rows=rows, end=end
    )


SOUND = RunStatus(finished=True, conservation_error=0, groups={"trained": 8})


def test_a_sound_run_says_what_was_learned(config_file: Path) -> None:
    summary = summary_of(config_file, SOUND)
    assert summary.sound
    assert report.unsound(summary) == []
    lines = report.learned(summary)
    assert f"accuracy {ROWS[0].accuracy:.2f} in the first step" in "\n".join(lines)
    assert lines[-1] == "restarts: trainer 2"


def test_the_last_accuracy_is_the_mean_of_three_steps(config_file: Path) -> None:
    summary = summary_of(config_file, SOUND)
    assert summary.accuracy_last == round(sum(row.accuracy for row in ROWS[-3:]) / 3, 4)


def test_a_conservation_error_is_loud(config_file: Path) -> None:
    summary = summary_of(config_file, RunStatus(finished=True, conservation_error=3))
    assert not summary.sound
    assert "CONSERVATION ERROR 3" in report.unsound(summary)[0]


def test_a_buffer_that_did_not_say_is_not_taken_for_sound(config_file: Path) -> None:
    summary = summary_of(config_file, None)
    assert not summary.sound
    assert "NOT" in report.unsound(summary)[0]


def test_a_run_that_trained_nothing_is_not_sound(config_file: Path) -> None:
    summary = summary_of(config_file, SOUND, rows=[])
    assert not summary.sound
    assert report.unsound(summary) == ["NOTHING WAS TRAINED"]


def test_a_run_that_ended_early_says_why(config_file: Path) -> None:
    status = RunStatus(finished=True, end_reason="90 % of the groups were all correct")
    summary = summary_of(config_file, status, rows=ROWS[:2])
    assert "trained 2 of 4 steps" in report.learned(summary)[0]
    assert report.learned(summary)[1] == "it ended early: 90 % of the groups were all correct"


def test_the_summary_is_written_as_json(config_file: Path, tmp_path: Path) -> None:
    summary = summary_of(config_file, SOUND)
    summary.write(tmp_path / "summary.json")
    read = json.loads((tmp_path / "summary.json").read_text())
    assert read["config_digest"] == load(config_file).digest()
    assert read["groups"] == {"trained": 8}
    assert read["restarts"] == {"buffer": 0, "trainer": 2}
    assert "torch" in read["packages"]


def test_the_curves_are_a_picture(tmp_path: Path) -> None:
    draw_curves(ROWS, EVALUATED, "tiny-1", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_single_step_can_be_drawn(tmp_path: Path) -> None:
    draw_curves(ROWS[:1], [], "tiny-1", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_answers_are_aligned_and_short() -> None:
    lines = report.answers_table(
        [
            Answer(question="What is 7 + 5?", key="12", first="7 + 5\nis\n" + "x" * 90, last="12"),
            Answer(question="What is 1 - 1?", key="0", first="", last="0"),
        ]
    )
    columns = [line.index(last) for line, last in zip(lines[1:], ["12", "0"], strict=True)]
    assert columns[0] == columns[1]
    assert lines[2].split() == ["What", "is", "1", "-", "1?", "0", "(nothing)", "0"]
    assert max(map(len, lines)) < 100


def test_the_questions_are_the_same_for_the_same_seed(config_file: Path) -> None:
    config = load(config_file)
    assert questions(config) == questions(config)
    assert len({row.message for row in questions(config)}) == 6


def test_the_next_commands_name_this_run(config_file: Path, monkeypatch) -> None:
    monkeypatch.chdir(config_file.parent)
    run_dir = config_file.parent / "runs" / "tiny"
    first, *_ = report.next_commands(config_file, run_dir, 4)
    assert first.endswith(" run runs/tiny/config.toml --run-dir runs/tiny --resume --steps 8")
