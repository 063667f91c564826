"""The problems of an evaluation: their ids, and when two evaluations can be compared."""

from pathlib import Path

import pytest

from dapod import config as configuration
from dapod.config import ConfigError
from dapod.types import PolicyVersion
from services.buffer.problems import ProblemId, load_problems
from tests.buffer.test_main import MODEL, QUICKSTART, needs_model

DATA = QUICKSTART.parent / "one_digit_arithmetic.jsonl"


def load(*overrides: str):
    settings = [
        "evaluation.every_steps=2",
        f"evaluation.data.path={DATA}",
        "evaluation.data.prompt_column=question",
        "evaluation.data.verifier=integer",
        f"model.path={MODEL}",
        *overrides,
    ]
    return load_problems(configuration.load(QUICKSTART, settings))


def test_an_id_names_policy_and_row() -> None:
    policy = PolicyVersion(number=4, lineage="9f2c1a")
    assert ProblemId.parse(f"{policy}-17") == ProblemId(policy=policy, row=17)
    for training in ("0-17", "12-3", "v4-9f2c1a", "v04-9f2c1a-1", "v4-9f2c1a-01", "v4-9F-1"):
        assert ProblemId.parse(training) is None


@needs_model
def test_problems_stand_in_the_order_of_the_file_with_their_answers() -> None:
    problems = load()
    assert problems is not None and len(problems) == 200
    assert [problems.get(row).answer for row in range(4)] == ["0", "0", "1", "-1"]
    with pytest.raises(KeyError):
        problems.get(200)


@needs_model
def test_the_digest_tells_evaluations_apart_that_cannot_be_compared(tmp_path: Path) -> None:
    plain = load()
    assert plain is not None
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(DATA.read_text().splitlines(keepends=True)[:9]))
    for override in (
        "evaluation.samples=2",
        "evaluation.top_p=0.7",
        "evaluation.max_response_tokens=8",
        "evaluation.data.verifier=gsm8k",
        f"evaluation.data.path={fewer}",
    ):
        other = load(override)
        assert other is not None and other.digest != plain.digest
    same = load("evaluation.every_steps=5", "evaluation.max_share=0.1")
    assert same is not None and same.digest == plain.digest


@needs_model
def test_what_is_wrong_with_the_data_names_the_right_table() -> None:
    with pytest.raises(ConfigError, match=r"^evaluation\.data\.prompt_column"):
        load("evaluation.data.prompt_column=nothing")


def test_without_an_evaluation_there_are_no_problems() -> None:
    assert load_problems(configuration.load(QUICKSTART)) is None
