"""The whole file: the rules between its tables, and what follows from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from dapod.config import presets
from dapod.config.evaluation import Evaluation
from dapod.config.sections import (
    Algorithm,
    Buffer,
    Data,
    Model,
    Optimiser,
    Reward,
    RolloutEngine,
    Run,
    Sampling,
    Section,
    Trainer,
)

MAX_GROUP_BYTES = 48 * 1024 * 1024
"""A group must fit one gRPC message (64 MiB) with room to spare."""


class RunConfig(Section):
    """The whole file."""

    run: Run
    model: Model
    data: Data
    sampling: Sampling
    algorithm: Algorithm
    optimiser: Optimiser
    trainer: Trainer
    rollout: RolloutEngine
    reward: Reward = Reward()
    buffer: Buffer = Buffer()
    evaluation: Evaluation | None = None

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, raw: Any) -> Any:
        return presets.filled(raw) if isinstance(raw, Mapping) else raw

    @model_validator(mode="after")
    def _rules_between_sections(self) -> Self:
        algorithm, sampling = self.algorithm, self.sampling
        if algorithm.prompts_per_step % algorithm.prompts_per_update:
            raise ValueError(
                f"algorithm.prompts_per_step ({algorithm.prompts_per_step}) must be a multiple of "
                f"algorithm.prompts_per_update ({algorithm.prompts_per_update})"
            )
        if algorithm.overlong_cache_tokens >= sampling.max_response_tokens:
            raise ValueError(
                f"algorithm.overlong_cache_tokens ({algorithm.overlong_cache_tokens}) must be "
                f"smaller than sampling.max_response_tokens ({sampling.max_response_tokens})"
            )
        if algorithm.max_leases_per_step < algorithm.prompts_per_step:
            raise ValueError(
                f"algorithm.max_leases_per_step ({algorithm.max_leases_per_step}) must be at least "
                f"algorithm.prompts_per_step ({algorithm.prompts_per_step})"
            )
        if self.trainer.tokens_per_micro_batch < self.tokens_per_rollout:
            raise ValueError(
                f"trainer.tokens_per_micro_batch ({self.trainer.tokens_per_micro_batch}) must hold "
                f"one rollout: sampling.max_prompt_tokens + sampling.max_response_tokens = "
                f"{self.tokens_per_rollout}"
            )
        if self.group_bytes > MAX_GROUP_BYTES:
            raise ValueError(
                f"a group of {algorithm.group_size} rollouts of {sampling.max_response_tokens} "
                f"tokens takes {self.group_bytes >> 20} MiB, more than one message carries "
                f"({MAX_GROUP_BYTES >> 20} MiB): lower algorithm.group_size or "
                f"sampling.max_response_tokens"
            )
        return self

    @model_validator(mode="after")
    def _an_evaluated_problem_fits_a_message(self) -> Self:
        evaluation = self.evaluation
        if evaluation is None:
            return self
        size = evaluation.samples * (8 * self.evaluation_response_tokens + 256)
        if size > MAX_GROUP_BYTES:
            raise ValueError(
                f"{evaluation.samples} answers of {self.evaluation_response_tokens} tokens take "
                f"{size >> 20} MiB, more than one message carries ({MAX_GROUP_BYTES >> 20} MiB): "
                f"lower evaluation.samples or evaluation.max_response_tokens"
            )
        return self

    @property
    def tokens_per_rollout(self) -> int:
        """Longest prompt with the longest response."""
        return self.sampling.max_prompt_tokens + self.sampling.max_response_tokens

    @property
    def evaluation_response_tokens(self) -> int:
        """Longest response of an evaluation."""
        own = None if self.evaluation is None else self.evaluation.max_response_tokens
        return own or self.sampling.max_response_tokens

    @property
    def context_tokens(self) -> int:
        """Longest prompt with the longest response, of training or evaluation."""
        longest = max(self.sampling.max_response_tokens, self.evaluation_response_tokens)
        return self.sampling.max_prompt_tokens + longest

    @property
    def verifiers(self) -> list[str]:
        """Those of training and evaluation, each once."""
        named = [self.data.verifier]
        if self.evaluation is not None:
            named.append(self.evaluation.data.verifier)
        return list(dict.fromkeys(named))

    @property
    def group_bytes(self) -> int:
        """Largest payload of one group: int32 ids and float32 log-probs, and the prompt."""
        rollouts = self.algorithm.group_size * (8 * self.sampling.max_response_tokens + 256)
        return rollouts + 4 * self.sampling.max_prompt_tokens + 256

    @property
    def live_payload_steps(self) -> int:
        """Most steps of payload that live at once (docs/architecture.md)."""
        return self.trainer.checkpoint_every_steps + self.algorithm.max_staleness + 1

    @property
    def updates_per_step(self) -> int:
        return self.algorithm.prompts_per_step // self.algorithm.prompts_per_update

    def digest(self) -> str:
        """Hex digest over every setting that changes what is learned.

        Left out: the run's length, its evaluations, and how much of a machine each part takes.
        """
        learned = self.model_dump(
            include={"model", "data", "sampling", "algorithm", "optimiser"}, mode="json"
        )
        learned["seed"] = self.run.seed
        # What a preset was called changes nothing; what it set stands among the values.
        del learned["algorithm"]["preset"]
        # Where the files lie is the machine's business; moving them must not end a run.
        learned["model"]["path"] = Path(self.model.path).name
        learned["data"]["path"] = self.data.source.identity
        text = json.dumps(learned, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
