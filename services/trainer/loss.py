"""The loss on flat response tokens (eq. 8 and 9, GRPO's KL term), in torch. Knows nothing of models
or ranks.

    loss = sum over tokens of  weight · (beta · KL - w · objective)
    objective = min(r·A, clip(r, 1 - low, 1 + high)·A), where A < 0 at least dual·A

`weight` is the normaliser's (`normalise.py`), `r` the ratio to the old policy, `w` the importance
weight. The same in float64: `dapod.algorithm`. Departures from the paper, numbered:

1. `recompute`: pi_old is the trainer's own policy at the start of the step, and each token is
   weighted by w = min(pi_old / pi_rollout, C), which corrects that the engine sampled from other
   numerics and perhaps an older policy. `rollout`: pi_old is what the engine reported, the ratio
   itself spans the mismatch, w = 1.
2. Log-ratios are clamped to ±20 before exp, so that no single token makes an infinity.
3. Dual clip (0 = off) and the KL term (beta = 0) are not DAPO's; presets of other papers set them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """Clip-higher, section 3.1."""

    low: float
    high: float
    dual: float
    """c of dual-clip PPO, above 1; 0 is off."""


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """The loss of some tokens, and where the clip was binding."""

    loss: torch.Tensor
    """[] to be summed over micro-batches and ranks."""
    clipped_low: int
    """Tokens with r < 1 - low and A < 0: they carry no gradient."""
    clipped_high: int
    """Tokens with r > 1 + high and A > 0: they carry no gradient."""


def policy_loss(
    logprobs: torch.Tensor,
    *,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    clipping: Clipping,
) -> TokenLoss:
    """All arguments [T]; only `logprobs` carries a gradient. A token of weight 0 counts nowhere."""
    ratio = torch.exp(_clamped(logprobs - old_logprobs))
    clipped = torch.clamp(ratio, 1.0 - clipping.low, 1.0 + clipping.high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    if clipping.dual:
        bounded = torch.maximum(objective, clipping.dual * advantages)
        objective = torch.where(advantages < 0, bounded, objective)
    trained = weights > 0
    low = trained & (ratio < 1.0 - clipping.low) & (advantages < 0)
    high = trained & (ratio > 1.0 + clipping.high) & (advantages > 0)
    return TokenLoss(
        loss=-(weights * objective).sum(), clipped_low=int(low.sum()), clipped_high=int(high.sum())
    )


def importance_weights(
    old_logprobs: torch.Tensor, rollout_logprobs: torch.Tensor, cap: float
) -> torch.Tensor:
    """[T] min(pi_old / pi_rollout, cap), without a gradient."""
    return torch.exp(_clamped(old_logprobs - rollout_logprobs)).clamp(max=cap).detach()


def k3(logprobs: torch.Tensor, other_logprobs: torch.Tensor) -> torch.Tensor:
    """[T] the k3 estimate of KL(pi || other) on tokens sampled from pi: never negative.

    With x = log other - log pi it is exp(x) - 1 - x; its mean is that of k1 (-x), with less noise.
    GRPO eq. 4 is k3 of the policy against the reference; there `logprobs` carries the gradient.
    """
    x = _clamped(other_logprobs - logprobs)
    return torch.expm1(x) - x


def _clamped(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
