"""DAPO and its relatives in plain Python: one function for each formula of the papers.

The float64 reference the torch form in `services.trainer` is tested against. Sections and equations
are DAPO's (arXiv 2503.14476) unless another paper is named: GRPO (DeepSeekMath, arXiv 2402.03300),
Dr. GRPO (arXiv 2503.20783), dual-clip PPO (arXiv 1912.09729). Choices they leave open, numbered:

1. `std` in eq. 9: with Bessel's correction (ddof = 1), as verl and TRL do, without an epsilon. A
   group whose rewards are all equal gets advantage 0.
2. Rollouts that could not be judged have reward None: they stay out of mean, std, loss and
   normaliser, and their advantage is None.
3. The KL term is per token, with the normaliser and without the importance weight of the objective.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

OverlongFilter = Literal["off", "excluded", "counted"]
Weights = list[list[float]]
"""[prompt][rollout]: the weight of each of its tokens."""


def is_informative(correct: Sequence[bool | None]) -> bool:
    """Whether `0 < #correct < #judged` (eq. 8, alg. 1): by accuracy, never by reward."""
    judged = [c for c in correct if c is not None]
    return 0 < sum(judged) < len(judged)


def overlong_penalty(tokens: int, max_response_tokens: int, cache_tokens: int) -> float:
    """Soft overlong punishment in [-1, 0] of a response (eq. 13); a cache of 0 turns it off."""
    if cache_tokens == 0:
        return 0.0
    excess = tokens - (max_response_tokens - cache_tokens)
    return -min(max(excess / cache_tokens, 0.0), 1.0)


def reward(correct: bool, penalty: float) -> float:
    """Rule-based reward (eq. 7), +1 or -1, plus the overlong penalty (section 3.4)."""
    return (1.0 if correct else -1.0) + penalty


def group_advantages(
    rewards: Sequence[float | None], *, scale: Literal["std", "none"] = "std"
) -> list[float | None]:
    """`(R_i - mean R) / std R` over the judged rollouts of one group (eq. 9).

    With scale "none" it is not divided by std R (Dr. GRPO, section 3.2).
    """
    judged = [r for r in rewards if r is not None]
    if len(judged) < 2:
        return [None if r is None else 0.0 for r in rewards]
    mean, std = statistics.fmean(judged), statistics.stdev(judged)
    divisor = (std or math.inf) if scale == "std" else 1.0
    return [None if r is None else (r - mean) / divisor for r in rewards]


def token_objective(
    logprob: float,
    old_logprob: float,
    advantage: float,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
) -> float:
    """The clipped objective of one token, to be maximised (eq. 8, 9; clip-higher, section 3.1).

    With `dual_clip` it is at least `dual_clip * advantage` where the advantage is negative
    (dual-clip PPO); 0 turns that off.
    """
    ratio = math.exp(logprob - old_logprob)
    clipped = min(max(ratio, 1.0 - clip_low), 1.0 + clip_high)
    objective = min(ratio * advantage, clipped * advantage)
    if dual_clip and advantage < 0.0:
        return max(objective, dual_clip * advantage)
    return objective


def importance_weight(old_logprob: float, rollout_logprob: float, cap: float) -> float:
    """`min(pi_old / pi_rollout, cap)`: corrects that the engine sampled from other numerics."""
    return min(math.exp(old_logprob - rollout_logprob), cap)


def reference_kl(logprob: float, reference_logprob: float) -> float:
    """`pi_ref / pi - log(pi_ref / pi) - 1` of one token (GRPO eq. 4, "k3"): never negative."""
    x = reference_logprob - logprob
    return math.expm1(x) - x


def token_loss(
    objective: float, *, importance_weight: float, kl: float = 0.0, kl_coefficient: float = 0.0
) -> float:
    """What is minimised, before the normaliser (GRPO eq. 3: the objective minus beta times KL)."""
    return kl_coefficient * kl - importance_weight * objective


def carries_loss(*, judged: bool, truncated: bool, overlong_filter: OverlongFilter) -> bool:
    """Whether a rollout is trained on: overlong filtering (section 3.4) masks truncated ones."""
    return judged and not (truncated and overlong_filter != "off")


def is_counted(*, judged: bool, truncated: bool, overlong_filter: OverlongFilter) -> bool:
    """Whether a rollout's tokens are in the normaliser; masked ones may be ("counted")."""
    return judged and not (truncated and overlong_filter == "excluded")


def prompt_weights(tokens: Sequence[Sequence[int]], _: int) -> Weights:
    """1 / (tokens of the prompt's rollouts · prompts): eq. 8."""
    prompts = sum(any(group) for group in tokens)
    return [[_part(n, sum(group) * prompts) for n in group] for group in tokens]


def token_weights(tokens: Sequence[Sequence[int]], _: int) -> Weights:
    """1 / (tokens of the whole update): verl's "token-mean"."""
    total = sum(map(sum, tokens))
    return [[_part(n, total) for n in group] for group in tokens]


def sequence_weights(tokens: Sequence[Sequence[int]], _: int) -> Weights:
    """1 / (the rollout's own tokens · rollouts): GRPO eq. 3."""
    rollouts = _rollouts(tokens)
    return [[_part(n, n * rollouts) for n in group] for group in tokens]


def constant_weights(tokens: Sequence[Sequence[int]], max_response_tokens: int) -> Weights:
    """1 / (max_response_tokens · rollouts): Dr. GRPO, listing 1 (a constant for each response, then
    the mean over responses)."""
    rollouts = _rollouts(tokens)
    return [[_part(n, max_response_tokens * rollouts) for n in group] for group in tokens]


NORMALISERS: Mapping[str, Callable[[Sequence[Sequence[int]], int], Weights]] = {
    "prompt": prompt_weights,
    "token": token_weights,
    "sequence": sequence_weights,
    "constant": constant_weights,
}
"""By `algorithm.loss_normaliser`: (tokens, max_response_tokens) -> weights.

`tokens` are those of one update over all ranks, [prompt][rollout], 0 for a rollout that is not
counted. Such a rollout gets weight 0, and a prompt of which nothing is counted is no prompt: both
might as well not be there.
"""


def _rollouts(tokens: Sequence[Sequence[int]]) -> int:
    return sum(n > 0 for group in tokens for n in group)


def _part(tokens: int, denominator: int) -> float:
    return 1.0 / denominator if tokens else 0.0
