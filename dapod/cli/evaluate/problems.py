"""The problems of an evaluation: the rows of the data set, tokenised for the model.

Each problem once, however often its row is repeated: of AIME-2024 as published 30 remain of 960.
What the context cannot hold together with a response is refused or filtered, by data.long_prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dapod.cli.evaluate.model_choice import ChosenModel
from dapod.config import EvalConfig
from dapod.dataset import DataSet
from dapod.dataset.tokenised import PromptLimit, TokenisedDataSet, tokenise
from dapod.model_files import context_tokens
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
    data_set: DataSet
    """Where they are from, and what became of the rows."""

    @property
    def digest(self) -> str:
        """Of messages and keys: another data set under the same name is seen."""
        return self.data_set.digest()

    @property
    def max_prompt_tokens(self) -> int:
        return max(len(problem.prompt_token_ids) for problem in self.rows)


def read_problems(config: EvalConfig, model: ChosenModel) -> Problems:
    """Raises `ConfigError` for rows that cannot be asked."""
    tokenised = _that_fit(tokenise(config.data, model.directory), config, model)
    rows = zip(tokenised.data_set.rows, tokenised.token_ids, strict=True)
    return Problems(
        rows=[
            Problem(number=number, message=row.message, answer=row.answer, prompt_token_ids=ids)
            for number, (row, ids) in enumerate(rows)
        ],
        data_set=tokenised.data_set,
    )


def _that_fit(
    tokenised: TokenisedDataSet, config: EvalConfig, model: ChosenModel
) -> TokenisedDataSet:
    """The context holds a prompt and the longest response."""
    context, response = context_tokens(model.directory), config.sampling.max_response_tokens
    if context is None:
        return tokenised
    limit = PromptLimit(
        tokens=context - response,
        name=f"what the model's context of {context} tokens leaves beside "
        f"sampling.max_response_tokens = {response}",
        remedy=lambda longest: (
            f"lower that (--max-response-tokens) to {context - longest}"
            if longest < context
            else "choose a model with a longer context"
        ),
    )
    return tokenised.within(limit, config.data.long_prompts)
