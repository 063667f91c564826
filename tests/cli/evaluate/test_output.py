"""The output directory: what a killed command left, and whose it is."""

import json
from pathlib import Path

import numpy as np
import pytest

from dapod.cli.evaluate.output import Output
from dapod.cli.evaluate.problems import Problem
from dapod.cli.evaluate.record import Answer, Answered, ProblemRecord
from dapod.config import ConfigError
from dapod.types import FinishReason, Outcome, Verdict

IDENTITY = {"model": "abc", "evaluation.samples": 2, "evaluation.keep_responses": True}


def answered(number: int, *outcomes: Outcome) -> Answered:
    problem = Problem(
        number=number, message="?", answer="7", prompt_token_ids=np.array([1], dtype=np.int32)
    )
    return Answered(
        problem=problem,
        answers=[
            Answer(
                text="so 7\u2028 it is",
                tokens=3,
                finish_reason=FinishReason.LENGTH if outcome.judged else FinishReason.STOP,
                verdict=Verdict(
                    outcome=outcome,
                    correct=outcome is Outcome.CORRECT if outcome.judged else None,
                    reward=None,
                    extracted=outcome.value if outcome.judged else None,
                ),
            )
            for outcome in outcomes
        ],
    )


def add(output: Output, number: int, *outcomes: Outcome) -> None:
    done = answered(number, *(outcomes or (Outcome.CORRECT, Outcome.WRONG)))
    output.append(done, ProblemRecord.of(done, start=1, elapsed_seconds=0.5))


@pytest.fixture
def output(tmp_path: Path) -> Output:
    output = Output(path=tmp_path / "out", identity=IDENTITY)
    output.check()
    assert output.open({"about": "a test"}) == []
    return output


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def test_what_is_written_is_read_again(output: Output) -> None:
    add(output, 4, Outcome.CORRECT, Outcome.TIMEOUT, Outcome.CORRECT, Outcome.UNPARSED)
    (record,) = output.open({})
    assert (record.problem, record.judged, record.correct, record.majority) == (4, 3, 2, 1.0)
    assert record.outcomes == {"correct": 2, "timeout": 1, "unparsed": 1}
    assert record.extracted == [("correct", 2), ("unparsed", 1)]
    assert (record.tokens, record.tokens_mean, record.truncated) == (12, 3.0, 3)
    (responses,) = lines(output.responses_file)
    assert responses["problem"] == 4 and len(responses["responses"]) == 4  # type: ignore[arg-type]


def test_a_line_cut_off_half_way_is_that_of_no_problem(output: Output) -> None:
    add(output, 0)
    add(output, 1)
    whole = output.problems_file.read_bytes()
    output.problems_file.write_bytes(whole[:-5])
    assert [record.problem for record in output.open({})] == [0]
    add(output, 1)
    assert [record.problem for record in output.records()] == [0, 1]
    assert [line["problem"] for line in lines(output.responses_file)] == [0, 1]


def test_texts_whose_problem_was_not_written_are_cut_off(output: Output) -> None:
    add(output, 0)
    with output.responses_file.open("ab") as stream:
        stream.write(b'{"problem": 1}\n{"prob')
    assert [record.problem for record in output.open({})] == [0]
    assert [line["problem"] for line in lines(output.responses_file)] == [0]


def test_without_kept_responses_there_is_no_file_of_them(tmp_path: Path) -> None:
    output = Output(path=tmp_path, identity=IDENTITY | {"evaluation.keep_responses": False})
    output.open({})
    add(output, 0)
    assert not output.responses_file.exists() and len(output.records()) == 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model": "xyz"}, "model is 'abc' there and 'xyz' here"),
        ({"evaluation.samples": 4}, "evaluation.samples is 2 there and 4 here"),
    ],
)
def test_another_evaluation_in_the_same_directory_is_refused(
    output: Output, changed: dict[str, object], says: str
) -> None:
    other = Output(path=output.path, identity=IDENTITY | changed)
    with pytest.raises(ConfigError, match="holds another evaluation") as caught:
        other.check()
    assert says in str(caught.value) and "choose another --out" in str(caught.value)
    Output(path=output.path, identity=IDENTITY).check()


def test_a_directory_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not an evaluation's directory and not empty"):
        Output(path=tmp_path, identity=IDENTITY).check()
