"""The problems of an evaluation: the rows of its data set in their own order, each asked once.

A group id of an evaluation is `<policy>-<row>`, which none of training can be.

Example: problem 17 of the evaluation of policy v4-9f2c is `v4-9f2c-17`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from dapod.config import RunConfig, within
from dapod.types import PolicyVersion
from services.buffer.prompts import Prompt, read_prompts

_ID = re.compile(r"^v(0|[1-9]\d*)-([0-9a-z]+)-(0|[1-9]\d*)$", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ProblemId:
    """One problem under one policy."""

    policy: PolicyVersion
    row: int

    @classmethod
    def parse(cls, group_id: str) -> Self | None:
        """None for a group of training."""
        found = _ID.match(group_id)
        if found is None:
            return None
        policy = PolicyVersion(number=int(found[1]), lineage=found[2])
        return cls(policy=policy, row=int(found[3]))


class Problems:
    """Prompts by row."""

    def __init__(self, prompts: Sequence[Prompt], *, digest: str = "") -> None:
        self._prompts = prompts
        self.digest = digest
        """Of all that makes two evaluations comparable: rows, verifier and sampling."""

    def __len__(self) -> int:
        return len(self._prompts)

    def get(self, row: int) -> Prompt:
        """Raises `KeyError` for a row that is not there."""
        if row >= len(self):
            raise KeyError(row)
        return self._prompts[row]


def load_problems(config: RunConfig) -> Problems | None:
    """Reads and tokenises `evaluation.data`; None without an evaluation. Raises `ConfigError`."""
    evaluation = config.evaluation
    if evaluation is None:
        return None
    with within("evaluation"):
        prompts, data_set = read_prompts(config, evaluation.data)
    sampling = evaluation.model_dump(include={"samples", "temperature", "top_p"})
    longest = config.evaluation_response_tokens
    text = f"{data_set.digest()} {evaluation.data.verifier} {sampling} {longest}"
    return Problems(prompts, digest=hashlib.sha256(text.encode()).hexdigest()[:16])
