"""The TOML file of `dapod evaluate`: which model, which problems, how many answers to each.

Tables that a run has too ([model], [data], [rollout], [reward]) mean the same here. Defaults are
the paper's for AIME (section 4.1): 32 answers at temperature 1.0, top_p 0.7.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from dapod.config.run_config import MAX_GROUP_BYTES, RunConfig
from dapod.config.sections import Data, Model, Reward, RolloutEngine, Section


class EvalTask(Section):
    name: str = Field(default="", pattern=r"^([a-z0-9][a-z0-9._-]{0,62})?$")
    """Stands in the output directory's name; empty: the data set's."""
    samples: int = Field(default=32, ge=1, le=1024)
    """K, answers to each problem."""
    pass_at: tuple[int, ...] = ()
    """Each k of pass@k; empty: K alone."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The engine's random numbers."""
    keep_responses: bool = True
    """Whether the texts are kept, in responses.jsonl."""


class EvalSampling(Section):
    max_response_tokens: int = Field(ge=1)
    """The engine cuts here."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """0 is greedy."""
    top_p: float = Field(default=0.7, gt=0.0, le=1.0)
    """Unlike in training it may be below 1: nothing is learned from these answers."""


class EvalEngine(RolloutEngine):
    groups_in_flight: int = Field(default=8, ge=1)
    """Problems at a time, each with all its answers."""


class EvalConfig(Section):
    """The whole file."""

    evaluation: EvalTask = EvalTask()
    model: Model
    """`path` may also be a run directory: its newest policy."""
    data: Data
    sampling: EvalSampling
    rollout: EvalEngine = EvalEngine()
    reward: Reward = Reward()

    @model_validator(mode="after")
    def _rules_between_sections(self) -> Self:
        samples = self.evaluation.samples
        impossible = [k for k in self.evaluation.pass_at if not 1 <= k <= samples]
        if impossible:
            raise ValueError(
                f"evaluation.pass_at: pass@{impossible[0]} cannot be had of evaluation.samples = "
                f"{samples} answers to each problem: 1 to {samples} can"
            )
        if self.sampling.temperature == 0.0 and samples > 1:
            raise ValueError(
                "sampling.temperature = 0 gives the same answer every time: "
                "set evaluation.samples = 1"
            )
        return self

    @property
    def pass_at(self) -> list[int]:
        """Each k of pass@k, in order."""
        return sorted(set(self.evaluation.pass_at or (self.evaluation.samples,)))

    @property
    def answers_per_call(self) -> int:
        """Most answers that one message carries: ids, log-probs and text of a token in 16 bytes."""
        fit = MAX_GROUP_BYTES // (16 * self.sampling.max_response_tokens + 256)
        return min(self.evaluation.samples, max(1, fit))

    def as_run(self, *, max_prompt_tokens: int) -> RunConfig:
        """What the services are started with, who know runs only.

        Model, data, engine and verifiers are this file's; temperature and top_p come with each
        request; the tables of training stand at values that nobody reads.
        """
        tokens = max_prompt_tokens + self.sampling.max_response_tokens
        return RunConfig.model_validate(
            {
                "run": {"name": "evaluation", "steps": 1, "seed": self.evaluation.seed},
                "model": self.model,
                "data": self.data,
                "sampling": {
                    "max_prompt_tokens": max_prompt_tokens,
                    "max_response_tokens": self.sampling.max_response_tokens,
                },
                "algorithm": {
                    "group_size": max(2, self.answers_per_call),
                    "prompts_per_step": 1,
                    "prompts_per_update": 1,
                    "overlong_cache_tokens": 0,
                    "max_leases_per_step": 1,
                },
                "optimiser": {"learning_rate": 1.0},
                "trainer": {"tokens_per_micro_batch": tokens, "checkpoint_every_steps": 1},
                "rollout": self.rollout.model_dump(),
                "reward": self.reward,
            }
        )
