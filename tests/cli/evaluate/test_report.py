"""What is counted and said of the finished problems."""

from pathlib import Path

from dapod.cli.evaluate import report
from dapod.cli.evaluate.bar import bar, worth_a_line
from dapod.cli.evaluate.output import Output
from dapod.cli.evaluate.record import ProblemRecord
from dapod.cli.evaluate.tally import Tally
from dapod.dataset import Counts

ALL_ASKED = Counts(read=2)


def record(problem: int, *, correct: int, judged: int = 4, **changes: object) -> ProblemRecord:
    values = {
        "outcomes": {"correct": correct, "wrong": judged - correct, "timeout": 4 - judged},
        "majority": float(correct * 2 > judged) if judged else None,
        "start": 1,
        "elapsed_seconds": 2.0,
    }
    return ProblemRecord(
        problem=problem,
        answer="7",
        judged=judged,
        correct=correct,
        extracted=[],
        tokens=40,
        tokens_mean=10.0,
        truncated=1,
        **(values | changes),  # type: ignore[arg-type]
    )


def tally(*records: ProblemRecord) -> Tally:
    return Tally(records=records, samples=4, pass_at=[1, 4])


def said(counted: Tally, tmp_path: Path, rows: Counts = ALL_ASKED) -> str:
    return "\n".join(report.lines(Output(path=tmp_path, identity={}), counted, rows))


def test_the_metrics_stand_with_their_intervals(tmp_path: Path) -> None:
    text = said(tally(record(0, correct=4), record(1, correct=1)), tmp_path)
    assert "avg@4   0.6250  [0." in text and "pass@4  1.0000  [0." in text
    assert "maj@4   0.5000" in text and "95 % confidence, over 2 problems" in text
    assert "8 answers: 5 correct, 3 wrong" in text and "NOT JUDGED" not in text


def test_problems_that_were_filtered_are_said_beside_the_result(tmp_path: Path) -> None:
    counted = tally(record(0, correct=4), record(1, correct=1))
    assert "NOT ASKED" not in said(counted, tmp_path)
    text = said(counted, tmp_path, Counts(read=10, repeated=5, filtered=3))
    assert "NOT ASKED: 3 of 5 problems, too long for the model's context" in text


def test_answers_that_were_not_judged_are_said_and_not_wrong(tmp_path: Path) -> None:
    counted = tally(
        record(0, correct=2, judged=2), record(1, correct=0, judged=0), record(2, correct=4)
    )
    text = said(counted, tmp_path)
    assert "avg@4   1.0000" in text and "over 2 problems" in text
    assert "NOT JUDGED: 6 answers" in text
    assert "problems with such answers: 1 (0)" in text
    assert "problems without a judged answer, in no metric: 1 (1)" in text
    summary = counted.summary()
    assert summary["problems_without_a_judged_answer"] == [1]
    assert summary["problems_with_unjudged_answers"] == [0]
    assert summary["outcomes"]["timeout"] == 6


def test_nothing_judged_is_no_result(tmp_path: Path) -> None:
    text = said(tally(record(0, correct=0, judged=0)), tmp_path)
    assert "NOTHING WAS JUDGED" in text


def test_seconds_add_up_over_the_starts_of_the_command() -> None:
    counted = tally(
        record(0, correct=1, elapsed_seconds=2.0),
        record(1, correct=1, elapsed_seconds=5.0),
        record(2, correct=1, start=2, elapsed_seconds=3.0),
    )
    assert counted.seconds == 8.0 and counted.tokens_per_second == 15.0


def test_the_bar_tells_the_time_left_from_this_start_alone() -> None:
    finished = [record(n, correct=1) for n in range(4)]
    shown = bar(tally(*finished), total=10, before=2, elapsed_seconds=20.0)
    assert (shown.done, shown.total) == (4, 10)
    assert shown.text.startswith("4/10 problems  avg@4 0.250") and "~1m00s left" in shown.text
    assert "left" not in bar(tally(*finished), total=10, before=4, elapsed_seconds=0.0).text
    assert bar(tally(), total=10, before=0, elapsed_seconds=0.0).text == "0/10 problems"


def test_a_log_gets_a_line_for_every_tenth_and_for_the_last() -> None:
    assert worth_a_line(3, 0, 30) and worth_a_line(30, 28, 30)
    assert not worth_a_line(2, 0, 30) and not worth_a_line(30, 30, 30)
