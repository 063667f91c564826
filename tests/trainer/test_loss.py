"""The loss in torch against the float64 reference in `dapod.algorithm`."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dapod.algorithm import importance_weight, token_objective
from services.trainer.loss import Clipping, importance_weights, mismatch_kl, policy_loss

CLIPPING = Clipping(low=0.2, high=0.28)
LOGPROB = st.floats(-12.0, 0.0, width=32)
TOKENS = st.lists(
    st.tuples(LOGPROB, LOGPROB, st.floats(-3.0, 3.0, width=32), st.floats(0.0, 1.0, width=32)),
    min_size=1,
    max_size=20,
)


@given(TOKENS)
def test_the_loss_is_the_weighted_sum_of_the_reference_objective(tokens):
    logprobs, old, advantages, weights = torch.tensor(tokens, dtype=torch.float32).T
    result = policy_loss(
        logprobs, old_logprobs=old, advantages=advantages, weights=weights, clipping=CLIPPING
    )
    expected = -sum(
        w * token_objective(n, o, a, clip_low=0.2, clip_high=0.28) for n, o, a, w in tokens
    )
    scale = sum(abs(w * a) * math.exp(min(n - o, 20.0)) for n, o, a, w in tokens)
    assert float(result.loss) == pytest.approx(expected, abs=1e-5 * (1 + scale))


@given(LOGPROB, LOGPROB, st.floats(1.0, 10.0, width=32))
def test_importance_weights_are_capped_as_the_reference_says(old, rollout, cap):
    weight = importance_weights(torch.tensor([old]), torch.tensor([rollout]), cap)
    assert float(weight) == pytest.approx(importance_weight(old, rollout, cap), rel=1e-4)


def one(ratio: float, advantage: float) -> tuple[float, int, int]:
    """(gradient with respect to the log-prob, clipped low, clipped high) of one token."""
    logprob = torch.tensor([math.log(ratio)], requires_grad=True)
    result = policy_loss(
        logprob,
        old_logprobs=torch.zeros(1),
        advantages=torch.tensor([advantage]),
        weights=torch.ones(1),
        clipping=CLIPPING,
    )
    result.loss.backward()
    return float(logprob.grad), result.clipped_low, result.clipped_high


@pytest.mark.parametrize(
    ("ratio", "advantage", "low", "high"),
    [(1.29, 1.0, 0, 1), (1.27, 1.0, 0, 0), (0.79, -1.0, 1, 0), (0.81, -1.0, 0, 0)],
)
def test_a_binding_clip_is_counted_and_stops_the_gradient(ratio, advantage, low, high):
    gradient, clipped_low, clipped_high = one(ratio, advantage)
    assert (clipped_low, clipped_high) == (low, high)
    assert gradient == (0.0 if low or high else pytest.approx(-ratio * advantage))


def test_a_ratio_that_left_the_range_on_the_harmless_side_is_not_clipped():
    assert one(1.5, -1.0) == (pytest.approx(1.5), 0, 0)
    assert one(0.5, 1.0) == (pytest.approx(-0.5), 0, 0)


def test_tokens_without_weight_count_nowhere():
    result = policy_loss(
        torch.tensor([0.0, -1.0]),
        old_logprobs=torch.tensor([-1.0, 0.0]),
        advantages=torch.tensor([1.0, -1.0]),
        weights=torch.zeros(2),
        clipping=CLIPPING,
    )
    assert (float(result.loss), result.clipped_low, result.clipped_high) == (0.0, 0, 0)


def test_an_extreme_log_ratio_stays_finite():
    logprobs = torch.tensor([0.0, -200.0], requires_grad=True)
    result = policy_loss(
        logprobs,
        old_logprobs=torch.tensor([-200.0, 0.0]),
        advantages=torch.tensor([-1.0, 1.0]),
        weights=torch.ones(2),
        clipping=CLIPPING,
    )
    result.loss.backward()
    assert torch.isfinite(result.loss) and torch.isfinite(logprobs.grad).all()


@given(LOGPROB, LOGPROB)
def test_the_mismatch_is_never_negative_and_nothing_for_equal_policies(ours, theirs):
    # exp(x) - 1 - x cancels near 0: rounding of x itself is all that may show.
    assert float(mismatch_kl(torch.tensor(ours), torch.tensor(theirs))) >= -1e-6
    assert float(mismatch_kl(torch.tensor(ours), torch.tensor(ours))) == 0.0
