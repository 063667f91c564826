"""The problems of an evaluation: the rows of the data set, tokenised for the model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from dapod.cli.evaluate.model_choice import ChosenModel
from dapod.config import ConfigError, EvalConfig
from dapod.dataset import Row, read_rows
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

    @property
    def max_prompt_tokens(self) -> int:
        return max(len(problem.prompt_token_ids) for problem in self.rows)


def read_problems(config: EvalConfig, model: ChosenModel) -> Problems:
    """Raises `ConfigError` for rows that cannot be asked."""
    rows = read_rows(config.data)
    token_ids = PromptTokenizer(model.directory, chat=config.data.chat).encode(
        [row.message for row in rows]
    )
    problems = Problems(
        rows=[
            Problem(number=number, message=row.message, answer=row.answer, prompt_token_ids=ids)
            for number, (row, ids) in enumerate(zip(rows, token_ids, strict=True))
        ],
        digest=_digest(rows),
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


def _digest(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.message}\0{row.answer}\0".encode())
    return digest.hexdigest()[:16]
