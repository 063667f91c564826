"""The problems of an evaluation: the rows of the data set, tokenised for the model.

Each problem once, however often its row is repeated: of AIME-2024 as published 30 remain of 960.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dapod.cli.evaluate.model_choice import ChosenModel
from dapod.config import ConfigError, EvalConfig
from dapod.dataset import read_data
from dapod.model_files import context_tokens
from dapod.prompt_tokens import PromptTokenizer
from dapod.types import TokenIds


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One row."""

    number: int
    """Its place among the rows, from 0."""
    message: str
    answer: str
    """The key."""
    prompt_token_ids: TokenIds


@dataclass(frozen=True, kw_only=True)
class Problems:
    """All of them."""

    rows: Sequence[Problem]
    digest: str
    """Of messages and keys: another data set under the same name is seen."""
    origin: str
    """Where they are from, and what became of the rows, in words."""

    @property
    def max_prompt_tokens(self) -> int:
        return max(len(problem.prompt_token_ids) for problem in self.rows)


def read_problems(config: EvalConfig, model: ChosenModel) -> Problems:
    """Raises `ConfigError` for rows that cannot be asked."""
    data_set = read_data(config.data)
    token_ids = PromptTokenizer(model.directory, chat=config.data.chat).encode(
        [row.messages for row in data_set.rows]
    )
    problems = Problems(
        rows=[
            Problem(number=number, message=row.message, answer=row.answer, prompt_token_ids=ids)
            for number, (row, ids) in enumerate(zip(data_set.rows, token_ids, strict=True))
        ],
        digest=data_set.digest(),
        origin=str(data_set),
    )
    _check(problems, config, model)
    return problems


def _check(problems: Problems, config: EvalConfig, model: ChosenModel) -> None:
    for problem in problems.rows:
        if not problem.answer.strip():
            raise ConfigError(f"data.path: row {problem.number + 1} has an empty answer")
        if not len(problem.prompt_token_ids):
            raise ConfigError(f"data.path: row {problem.number + 1} has an empty prompt")
    context = context_tokens(model.directory)
    longest, response = problems.max_prompt_tokens, config.sampling.max_response_tokens
    if context is not None and longest + response > context:
        raise ConfigError(
            f"the longest prompt ({longest} tokens) with sampling.max_response_tokens = "
            f"{response} exceeds the model's context of {context} tokens: "
            f"lower sampling.max_response_tokens (--max-response-tokens)"
        )
