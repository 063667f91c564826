"""What the arithmetic cannot know: each with a default, where the default is from, and its unit.

Every one is shown beside the answer and can be replaced (`--assume name=value`). None was measured
on a GPU by us.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from dapod.config import ConfigError, RunConfig


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Field by field; `reasons` says where a default comes from."""

    prompt_tokens: float
    response_tokens: float
    informative_share: float
    mfu: float
    bandwidth_share: float
    storage_gb_per_second: float
    host_gb_per_second: float
    verifications_per_second: float
    reserve_gib: float

    def items(self) -> Iterator[tuple[str, float, str]]:
        """(name, value, why the default) in order."""
        for field in fields(self):
            yield field.name, getattr(self, field.name), REASONS[field.name]


REASONS = {
    "prompt_tokens": "mean; half of sampling.max_prompt_tokens",
    "response_tokens": "mean; half of sampling.max_response_tokens",
    "informative_share": "groups kept; half are all correct late (DAPO §3.2)",
    "mfu": "training, share of peak; PaLM (2204.02311) had 0.46",
    "bandwidth_share": "decoding, share of peak bandwidth and arithmetic",
    "storage_gb_per_second": "shared storage, for each writer or reader",
    "host_gb_per_second": "a trainer node's memory, if the optimiser is offloaded",
    "verifications_per_second": "a reward worker; 587 on one CPU core",
    "reserve_gib": "CUDA context, NCCL, fragmentation; on every GPU",
}


def assumptions_of(config: RunConfig, given: Sequence[str]) -> Assumptions:
    """The defaults for this config, then `given`, each `name=value`. Raises `ConfigError`."""
    sampling = config.sampling
    assumed = Assumptions(
        prompt_tokens=sampling.max_prompt_tokens / 2,
        response_tokens=sampling.max_response_tokens / 2,
        informative_share=0.5 if config.algorithm.dynamic_sampling else 1.0,
        mfu=0.3,
        bandwidth_share=0.5,
        storage_gb_per_second=1.0,
        host_gb_per_second=100.0,
        verifications_per_second=500.0,
        reserve_gib=2.0,
    )
    for text in given:
        assumed = replace(assumed, **_parsed(text))
    _check_lengths(config, assumed)
    return assumed


def _parsed(text: str) -> dict[str, float]:
    name, _, value = text.partition("=")
    if name not in REASONS:
        close = difflib.get_close_matches(name, REASONS, n=1, cutoff=0.5)
        raise ConfigError(
            f"--assume {text}: "
            + (f"did you mean {close[0]}?" if close else f"known are {', '.join(REASONS)}")
        )
    try:
        number = float(value)
    except ValueError:
        raise ConfigError(f"--assume {text}: write it as name=number") from None
    share = name in ("informative_share", "mfu", "bandwidth_share")
    low_enough = number <= 1 if share else number < float("inf")
    if not (number > 0 and low_enough) and not (name == "reserve_gib" and number == 0):
        raise ConfigError(
            f"--assume {text}: it must be greater than 0" + (" and at most 1" if share else "")
        )
    return {name: number}


def _check_lengths(config: RunConfig, assumed: Assumptions) -> None:
    for kind, mean, limit in (
        ("prompt", assumed.prompt_tokens, config.sampling.max_prompt_tokens),
        ("response", assumed.response_tokens, config.sampling.max_response_tokens),
    ):
        if mean > limit:
            raise ConfigError(
                f"--assume {kind}_tokens={mean:g}: it cannot be more than "
                f"sampling.max_{kind}_tokens ({limit})"
            )
