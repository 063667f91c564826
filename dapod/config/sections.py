"""The tables of a run's TOML file, key by key: types, bounds, defaults and what each means."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dapod.config.presets import DEFAULT
from dapod.config.source import ProceduralSource, Source, parse_source
from dapod.verifier_name import VerifierName

MAX_DEADLINE_SECONDS = 280.0
"""Of one verification: it is tried twice, and one Score call has 600 s, queueing included."""


class Section(BaseModel):
    """A table of the TOML file. TOML has inf and nan; no setting has a use for them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


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
    """JSON lines, parquet, `hub:OWNER/NAME[@REVISION][/FILES]` or `reasoning_gym:DATASET`
    (docs/data.md). A relative path is looked up beside the config file."""
    prompt_column: str = "prompt"
    """The question as text, or a list of chat messages. A dot leads into a column."""
    answer_column: str = "answer"
    """The key the verifier judges by."""
    template: str = "{prompt}"
    """The user's message; `{prompt}` stands for the question."""
    chat: bool = True
    """Whether the tokenizer's chat template is applied to the message."""
    verifier: str
    """A verifier of the reward service, by name (docs/verifiers.md)."""
    long_prompts: Literal["refuse", "filter"] = "refuse"
    """What becomes of prompts longer than sampling.max_prompt_tokens."""
    size: int = Field(default=0, ge=0)
    """How many rows reasoning_gym generates."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """What reasoning_gym generates from: another seed, other rows."""

    @property
    def source(self) -> Source:
        return parse_source(self.path)

    @model_validator(mode="after")
    def _template_names_the_prompt(self) -> Self:
        if "{prompt}" not in self.template:
            raise ValueError("data.template must contain {prompt}")
        return self

    @model_validator(mode="after")
    def _verifier_is_written_rightly(self) -> Self:
        try:
            VerifierName.parse(self.verifier)
        except ValueError as error:
            raise ValueError(f"data.verifier = {error}") from error
        return self

    @model_validator(mode="after")
    def _only_generated_rows_have_a_size(self) -> Self:
        if isinstance(self.source, ProceduralSource):
            if not self.size:
                raise ValueError(f"data.size is missing: how many rows of {self.path} to generate")
            if self.verifier != self.path and not self.verifier.startswith("python:"):
                raise ValueError(
                    f'data.verifier = {self.verifier!r} cannot judge {self.path}: use "{self.path}"'
                )
        elif self.size or self.seed:
            raise ValueError("data.size and data.seed are for data.path = reasoning_gym:… only")
        return self


class Sampling(Section):
    max_prompt_tokens: int = Field(ge=1)
    max_response_tokens: int = Field(ge=1)
    """Lmax of section 3.4: the engine cuts here."""
    temperature: float = Field(default=1.0, gt=0.0, le=2.0)
    top_p: float = Field(default=1.0, ge=1.0, le=1.0)
    """Training needs the whole distribution (trl#6789): other values are refused."""


class Algorithm(Section):
    """Keys without a default here come from the preset: `dapod.config.presets`."""

    preset: str = DEFAULT
    """The recipe whose values stand where the file says nothing: dapo, dapo_verl, grpo, dr_grpo."""
    group_size: int = Field(ge=2, le=1024)
    """G, rollouts for each prompt."""
    prompts_per_step: int = Field(ge=1)
    """N, groups of one rollout step; informative ones with dynamic sampling."""
    prompts_per_update: int = Field(ge=1)
    """Groups of one optimiser update."""
    clip_low: float = Field(gt=0.0, lt=1.0)
    clip_high: float = Field(gt=0.0)
    """Clip-higher (section 3.1): epsilon_high > epsilon_low."""
    dual_clip: float = Field(ge=0.0)
    """c of dual-clip PPO (Ye et al., arXiv 1912.09729): where the advantage is negative, the
    objective is at least c times it. Above 1; 0 is off."""
    loss_normaliser: Literal["prompt", "token", "sequence", "constant"]
    """What a token's loss is divided by, in one update: services/trainer/normalise.py.

    prompt: tokens of the G outputs of one prompt, then the mean over prompts (eq. 8).
    token: tokens of the whole update. sequence: tokens of each output, then the mean over outputs.
    constant: sampling.max_response_tokens, then the mean over outputs (Dr. GRPO).
    """
    advantage_scale: Literal["std", "none"]
    """Whether reward - mean is divided by the group's deviation (eq. 9), or not (Dr. GRPO)."""
    overlong_filter: Literal["off", "excluded", "counted"]
    """Whether rollouts cut off at the length limit carry loss (overlong filtering, section 3.4).

    excluded: they carry none and are not in the normaliser either. counted: they carry none but
    the normaliser counts them. Their rewards are in mean and deviation either way.
    """
    kl_coefficient: float = Field(ge=0.0)
    """beta of GRPO's KL term against model.path; 0 needs no reference model (decision 0005)."""
    dynamic_sampling: bool
    """Whether uniform groups are dropped (section 3.2) or trained like any other."""
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

    @model_validator(mode="after")
    def _dual_clip_is_off_or_above_one(self) -> Self:
        if 0.0 < self.dual_clip <= 1.0:
            raise ValueError(
                f"algorithm.dual_clip = {self.dual_clip}: must be above 1, or 0 to turn it off"
            )
        return self


class Optimiser(Section):
    learning_rate: float = Field(gt=0.0)
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up, counted in rollout steps (section 4.1)."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    gradient_clip: float = Field(default=1.0, gt=0.0)
    """Largest norm of the whole gradient."""


class Trainer(Section):
    ranks: int = Field(default=1, ge=1)
    """Ranks in all, the same number on each node (DAPOD_TRAINER_NODES)."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage."""
    tokens_per_micro_batch: int = Field(ge=1)
    """Token budget of one forward pass, prompt and padding included."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for backward and compute the layer again: longer responses fit,
    and a step computes a third more."""
    offload_optimiser: bool = False
    """Keep master weights and moments in the CPU's memory and update there (ZeRO 1 to 3)."""
    checkpoint_every_steps: int = Field(ge=1)
    threads: int = Field(default=0, ge=0)
    """CPU threads of each rank; 0 leaves it to torch."""

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Self:
        if self.offload_optimiser and self.zero_stage == 0:
            raise ValueError(
                "trainer.offload_optimiser needs DeepSpeed ZeRO: set trainer.zero_stage to 1, 2 or "
                "3, or trainer.offload_optimiser to false"
            )
        return self


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
    deadline_seconds: float = Field(default=5.0, gt=0.0, le=MAX_DEADLINE_SECONDS)
    """A verifier that takes longer for one response is killed."""
    memory_mib: int = Field(default=512, ge=64)
    """Memory limit of one verifier process."""


class Buffer(Section):
    lease_seconds: float = Field(default=60.0, gt=0.0)
    """A lease that is not renewed this long expires; pods renew at a third of it."""
    queue_prompts: int = Field(default=64, ge=1)
    """Prompts queued ahead of being leased."""
