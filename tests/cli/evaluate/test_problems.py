"""Which rows of a data set are asked: those that the context holds together with a response."""

import json
from pathlib import Path

import pytest

from dapod.cli.evaluate.problems import Problems, read_problems
from dapod.cli.evaluate.request import Flags, read
from dapod.config import ConfigError

LENGTHS = (5, 60, 7, 70)
"""Tokens of the prompts; the model's context holds 64."""


def problems(model: Path, rows: Path, response_tokens: int, long_prompts: str) -> Problems:
    lines = [{"prompt": "what " * n, "answer": str(n)} for n in LENGTHS]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "data.chat": "false",
        "data.verifier": "integer",
        "data.long_prompts": long_prompts,
        "sampling.max_response_tokens": str(response_tokens),
    }
    request = read(Flags(model=model, data=str(rows), settings=settings))
    return read_problems(request.config, request.model)


@pytest.mark.parametrize(
    ("response_tokens", "answers"), [(1, ["5", "60", "7"]), (4, ["5", "60", "7"]), (5, ["5", "7"])]
)
def test_filtered_the_problems_are_those_that_fit_with_their_response(
    model: Path, rows: Path, response_tokens: int, answers: list[str]
) -> None:
    found = problems(model, rows, response_tokens, "filter")
    assert [problem.answer for problem in found.rows] == answers
    assert [problem.number for problem in found.rows] == list(range(len(answers)))
    assert found.data_set.counts.filtered == len(LENGTHS) - len(answers)
    assert found.max_prompt_tokens + response_tokens <= 64


def test_another_set_of_problems_has_another_digest(model: Path, rows: Path) -> None:
    digests = {problems(model, rows, n, "filter").digest for n in (1, 4, 5)}
    assert len(digests) == 2


def test_refused_they_are_counted_and_the_first_is_named(model: Path, rows: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        problems(model, rows, 5, "refuse")
    assert str(caught.value) == (
        "data.path: 2 of 4 prompts are longer than what the model's context of 64 tokens leaves "
        f"beside sampling.max_response_tokens = 5 (first: {rows} line 2; longest: 70 tokens): "
        'choose a model with a longer context, or set data.long_prompts = "filter"'
    )


def test_a_response_as_long_as_the_context_leaves_nothing(model: Path, rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data.long_prompts: 4 of 4 .*: none is left"):
        problems(model, rows, 64, "filter")


def test_a_model_that_does_not_say_its_context_refuses_nothing(model: Path, rows: Path) -> None:
    (model / "config.json").write_text("{}")
    assert len(problems(model, rows, 64, "refuse").rows) == len(LENGTHS)
