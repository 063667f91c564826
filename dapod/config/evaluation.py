"""The table `[evaluation]`: what of the policy is measured while a run goes on, and how often."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from dapod.config.sections import Data, Section


class Evaluation(Section):
    """Leave the table out to evaluate nothing. It changes nothing of what is learned."""

    every_steps: int = Field(ge=1)
    """Policy versions 0, every_steps, 2 every_steps, … are evaluated, and the last one."""
    data: Data
    """The problems, with a verifier of their own; never trained on by this."""
    samples: int = Field(default=1, ge=1, le=1024)
    """K, answers to each problem."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nothing is trained on these answers, so it may be below 1 (section 4.1 has 0.7)."""
    max_response_tokens: int | None = Field(default=None, ge=1)
    """sampling.max_response_tokens unless given."""
    max_share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Largest share of the rollout pods that evaluate at a time, rounded down; at least one pod."""
    deadline_seconds: float = Field(default=3600.0, gt=0.0)
    """An evaluation that takes longer from its first lease on ends with what is done by then."""

    @model_validator(mode="after")
    def _greedy_answers_are_all_the_same(self) -> Self:
        if self.temperature == 0.0 and self.samples > 1:
            raise ValueError(
                f"evaluation.samples = {self.samples}: with evaluation.temperature = 0 all answers "
                f"are the same; set it to 1"
            )
        return self
