"""The paper's loss on flat response tokens (eq. 8 and 9), in torch. Knows nothing of models or
ranks.

    loss = - sum over tokens of  weight · w · min(r·A, clip(r, 1 - low, 1 + high)·A)

`weight` is the normaliser (`batch.prompt_weights`), `r` the ratio to the old policy, `w` the
importance weight. Departures from the paper, numbered:

1. `recompute`: pi_old is the trainer's own policy at the start of the step, and each token is
   weighted by w = min(pi_old / pi_rollout, C), which corrects that the engine sampled from other
   numerics and perhaps an older policy. `rollout`: pi_old is what the engine reported, the ratio
   itself spans the mismatch, w = 1.
2. Log-ratios are clamped to ±20 before exp, so that no single token makes an infinity.
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


def mismatch_kl(logprobs: torch.Tensor, rollout_logprobs: torch.Tensor) -> torch.Tensor:
    """[T] the k3 estimate of KL(pi_rollout || pi_trainer) on tokens sampled from pi_rollout: never
    negative.

    With x = log pi_trainer - log pi_rollout it is exp(x) - 1 - x; its mean is that of k1 (-x), with
    less noise.
    """
    x = _clamped(logprobs - rollout_logprobs)
    return torch.expm1(x) - x


def _clamped(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
