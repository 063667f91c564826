"""One run's configuration: a typed TOML file, checked as a whole before anything starts.

What is here changes what is learned or how much of a machine is used. Where services listen and
find each other is not: that is `environment`. Names carry their unit. Unknown keys are refused.

Example: `load(Path("configs/quickstart.toml"), ["run.steps=4"])`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAX_GROUP_BYTES = 48 * 1024 * 1024
"""A group must fit one gRPC message (64 MiB) with room to spare."""


class ConfigError(ValueError):
    """What the user gave cannot work; the message says what to change. Exit status 2."""


class Section(BaseModel):
    """A table of the TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Run(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """Names the run directory and, on Kubernetes, the run."""
    steps: int = Field(ge=1)
    """Rollout steps to train in all. May be raised to go on with a finished run."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Prompt order and the engine's random numbers."""


class Model(Section):
    path: str
    """A directory in the Hugging Face layout (safetensors, config.json, tokenizer.json)."""


class Data(Section):
    path: str
    """JSON lines, one prompt each. A relative path is looked up beside the config file."""
    prompt_column: str = "prompt"
    answer_column: str = "answer"
    template: str = "{prompt}"
    """The user's message; `{prompt}` stands for the prompt column."""
    chat: bool = True
    """Whether the tokenizer's chat template is applied to the message."""
    verifier: str
    """A verifier of the reward service, by name."""

    @model_validator(mode="after")
    def _template_names_the_prompt(self) -> Self:
        if "{prompt}" not in self.template:
            raise ValueError("data.template must contain {prompt}")
        return self


class Sampling(Section):
    max_prompt_tokens: int = Field(ge=1)
    max_response_tokens: int = Field(ge=1)
    """Lmax of section 3.4: the engine cuts here."""
    temperature: float = Field(default=1.0, gt=0.0, le=2.0)
    top_p: float = Field(default=1.0, ge=1.0, le=1.0)
    """Training needs the whole distribution (trl#6789): other values are refused."""


class Algorithm(Section):
    group_size: int = Field(ge=2, le=1024)
    """G, rollouts for each prompt."""
    prompts_per_step: int = Field(ge=1)
    """N, informative groups of one rollout step."""
    prompts_per_update: int = Field(ge=1)
    """Groups of one optimiser update."""
    clip_low: float = Field(default=0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(default=0.28, gt=0.0)
    """Clip-higher (section 3.1): epsilon_high > epsilon_low."""
    loss_normaliser: Literal["prompt"] = "prompt"
    """Tokens of the G outputs of one prompt, then the mean over prompts (eq. 8)."""
    old_logprobs: Literal["recompute", "rollout"] = "recompute"
    """pi_old of eq. 9: by the trainer at the start of the step, or as the engine reported it."""
    importance_weight_cap: float = Field(default=2.0, ge=1.0)
    """C in min(pi_old / pi_rollout, C), each token's weight with `recompute`."""
    overlong_cache_tokens: int = Field(default=0, ge=0)
    """Lcache of eq. 13; 0 turns the soft overlong punishment off."""
    max_staleness: int = Field(default=1, ge=0, le=64)
    """How many versions older than the trainer's a group may be when its batch is handed out."""
    max_leases_per_step: int = Field(ge=1)
    """A step that used more ends the run: the data is too easy or too hard."""


class Optimiser(Section):
    learning_rate: float = Field(gt=0.0)
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up, counted in rollout steps (section 4.1)."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    gradient_clip: float = Field(default=1.0, gt=0.0)
    """Largest norm of the whole gradient."""


class Trainer(Section):
    ranks: int = Field(default=1, ge=1)
    """Ranks on this node."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    tokens_per_micro_batch: int = Field(ge=1)
    """Token budget of one forward pass, prompt and padding included."""
    checkpoint_every_steps: int = Field(ge=1)
    threads: int = Field(default=0, ge=0)
    """CPU threads of each rank; 0 leaves it to torch."""


class RolloutEngine(Section):
    groups_in_flight: int = Field(ge=1)
    """Leases one pod works on at a time."""
    memory_gib: float = Field(default=1.0, gt=0.0)
    """Key-value cache of the CPU engine; on a GPU see gpu_memory_ratio."""
    gpu_memory_ratio: float = Field(default=0.9, gt=0.0, le=1.0)
    """Share of a GPU's memory the engine takes."""
    tensor_parallel: int = Field(default=1, ge=1)
    threads: int = Field(default=0, ge=0)
    """CPU threads of the engine; 0 leaves it to vLLM."""


class Reward(Section):
    workers: int = Field(default=1, ge=1)
    """Verifier processes of one pod."""
    deadline_seconds: float = Field(default=5.0, gt=0.0)
    """A verifier that takes longer is killed."""
    memory_mib: int = Field(default=512, ge=64)
    """Memory limit of one verifier process."""


class Buffer(Section):
    lease_seconds: float = Field(default=60.0, gt=0.0)
    """A lease that is not renewed this long expires; pods renew at a third of it."""
    queue_prompts: int = Field(default=64, ge=1)
    """Prompts queued ahead of being leased."""


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

    @property
    def tokens_per_rollout(self) -> int:
        """Longest prompt with the longest response."""
        return self.sampling.max_prompt_tokens + self.sampling.max_response_tokens

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

        Left out: the run's length, and how much of a machine each part takes.
        """
        learned = self.model_dump(
            include={"model", "data", "sampling", "algorithm", "optimiser"}, mode="json"
        )
        learned["seed"] = self.run.seed
        for section in ("model", "data"):
            # Where the files lie is the machine's business; moving them must not end a run.
            learned[section]["path"] = Path(learned[section]["path"]).name
        text = json.dumps(learned, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads and checks a config file; `overrides` are `section.key=value` with TOML values.

    Raises `ConfigError` with one sentence for each mistake.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply(raw, override)
    _resolve_paths(raw, path.resolve().parent)
    return parse(raw, str(path))


def parse(raw: dict[str, Any], source: str) -> RunConfig:
    """Checks a parsed TOML document; `source` stands in error messages."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        lines = [_sentence(dict(detail)) for detail in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from error


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not separator or not dot or not name:
        raise ConfigError(f"--set {override}: write it as section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    table = raw.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"--set {override}: {section} is not a section")
    table[name] = parsed


def _resolve_paths(raw: dict[str, Any], base: Path) -> None:
    """A relative model or data path means beside the config file, wherever one stands."""
    for section in ("model", "data"):
        table = raw.get(section)
        if isinstance(table, dict) and isinstance(table.get("path"), str):
            table["path"] = str((base / table["path"]).resolve())


def _sentence(detail: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key {where}{_nearest(detail['loc'])}"
    if detail["type"] == "missing":
        return f"{where} is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not where or detail["type"] == "value_error":
        return message
    return f"{where} = {detail['input']!r}: {message[0].lower()}{message[1:]}"


def _nearest(location: tuple[Any, ...]) -> str:
    known = RunConfig.model_fields
    if len(location) > 1:
        section = known[str(location[0])].annotation
        assert isinstance(section, type) and issubclass(section, Section)
        known = section.model_fields
    close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    prefix = "".join(f"{part}." for part in location[:-1])
    if close:
        return f" (did you mean {prefix}{close[0]}?)"
    return f" (known here: {', '.join(sorted(known))})"
