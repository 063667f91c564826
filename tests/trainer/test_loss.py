"""The loss in torch against the float64 reference in `dapod.algorithm`."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dapod.algorithm import importance_weight, reference_kl, token_objective
from services.trainer.loss import Clipping, importance_weights, k3, policy_loss

CLIPPING = Clipping(low=0.2, high=0.28, dual=0.0)
CLIPPINGS = st.builds(
    Clipping,
    low=st.floats(0.01, 0.9),
    high=st.floats(0.01, 2.0),
    dual=st.just(0.0) | st.floats(1.01, 10.0),
)
LOGPROB = st.floats(-12.0, 0.0, width=32)
TOKENS = st.lists(
    st.tuples(LOGPROB, LOGPROB, st.floats(-3.0, 3.0, width=32), st.floats(0.0, 1.0, width=32)),
    min_size=1,
    max_size=20,
)


@given(TOKENS, CLIPPINGS)
def test_the_loss_is_the_weighted_sum_of_the_reference_objective(tokens, clipping):
    logprobs, old, advantages, weights = torch.tensor(tokens, dtype=torch.float32).T
    result = policy_loss(
        logprobs, old_logprobs=old, advantages=advantages, weights=weights, clipping=clipping
    )
    clips = {"clip_low": clipping.low, "clip_high": clipping.high, "dual_clip": clipping.dual}
    expected = -sum(w * token_objective(n, o, a, **clips) for n, o, a, w in tokens)
    scale = sum(abs(w * a) * math.exp(min(n - o, 20.0)) for n, o, a, w in tokens)
    assert float(result.loss) == pytest.approx(expected, abs=1e-5 * (1 + scale))


@given(LOGPROB, LOGPROB, st.floats(1.0, 10.0, width=32))
def test_importance_weights_are_capped_as_the_reference_says(old, rollout, cap):
    weight = importance_weights(torch.tensor([old]), torch.tensor([rollout]), cap)
    assert float(weight) == pytest.approx(importance_weight(old, rollout, cap), rel=1e-4)


@given(LOGPROB, LOGPROB, st.floats(-3.0, 3.0), CLIPPINGS)
def test_the_gradient_is_the_slope_of_the_reference_objective(now, old, advantage, clipping):
    logprob = torch.tensor([now], dtype=torch.float64, requires_grad=True)
    policy_loss(
        logprob,
        old_logprobs=torch.tensor([old], dtype=torch.float64),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        weights=torch.ones(1, dtype=torch.float64),
        clipping=clipping,
    ).loss.backward()

    def objective(at: float) -> float:
        clips = {"clip_low": clipping.low, "clip_high": clipping.high, "dual_clip": clipping.dual}
        return token_objective(at, old, advantage, **clips)

    step = 1e-6
    left, right = (objective(now) - objective(now - step), objective(now + step) - objective(now))
    assume(left == pytest.approx(right, rel=1e-3, abs=1e-9))  # not at a kink
    slope = -(left + right) / (2 * step)
    assert float(logprob.grad) == pytest.approx(slope, rel=1e-3, abs=1e-4)


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


def test_dual_clip_stops_the_gradient_of_a_rollout_that_became_much_too_likely():
    logprobs = torch.tensor([math.log(9.0), math.log(11.0)], requires_grad=True)
    policy_loss(
        logprobs,
        old_logprobs=torch.zeros(2),
        advantages=torch.tensor([-1.0, -1.0]),
        weights=torch.ones(2),
        clipping=Clipping(low=0.2, high=0.28, dual=10.0),
    ).loss.backward()
    assert logprobs.grad.tolist() == [pytest.approx(9.0), 0.0]


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
def test_k3_is_the_reference_and_nothing_for_equal_policies(ours, theirs):
    ours, theirs = (torch.tensor(x, dtype=torch.float64) for x in (ours, theirs))
    assert float(k3(ours, theirs)) == pytest.approx(reference_kl(float(ours), float(theirs)))
    assert float(k3(ours, ours)) == 0.0


@given(LOGPROB, LOGPROB)
def test_k3_pulls_the_policy_to_the_reference(ours, theirs):
    logprob = torch.tensor(ours, dtype=torch.float64, requires_grad=True)
    k3(logprob, torch.tensor(theirs, dtype=torch.float64)).backward()
    assert float(logprob.grad) == pytest.approx(1.0 - math.exp(theirs - ours))
