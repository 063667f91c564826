"""DAPO in plain Python: one function for each formula of the paper (arXiv 2503.14476).

The float64 reference the torch form in `services.trainer` is tested against. Choices the paper
leaves open, numbered:

1. `std` in eq. 9: with Bessel's correction (ddof = 1), as verl and TRL do, without an epsilon. An
   informative group has at least two different rewards, so the deviation is never 0; a group whose
   shaped rewards happen to be all equal gets advantage 0.
2. Rollouts that could not be judged have reward None: they stay out of mean and std and get None.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


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


def group_advantages(rewards: Sequence[float | None]) -> list[float | None]:
    """`(R_i - mean R) / std R` over the judged rollouts of one group (eq. 9)."""
    judged = [r for r in rewards if r is not None]
    if len(judged) < 2:
        return [None if r is None else 0.0 for r in rewards]
    mean, std = statistics.fmean(judged), statistics.stdev(judged)
    return [None if r is None else ((r - mean) / std if std > 0 else 0.0) for r in rewards]


def token_objective(
    logprob: float, old_logprob: float, advantage: float, *, clip_low: float, clip_high: float
) -> float:
    """The clipped objective of one token, to be maximised (eq. 8, 9; clip-higher, section 3.1)."""
    ratio = math.exp(logprob - old_logprob)
    clipped = min(max(ratio, 1.0 - clip_low), 1.0 + clip_high)
    return min(ratio * advantage, clipped * advantage)


def importance_weight(old_logprob: float, rollout_logprob: float, cap: float) -> float:
    """`min(pi_old / pi_rollout, cap)`: corrects that the engine sampled from other numerics."""
    return min(math.exp(old_logprob - rollout_logprob), cap)
