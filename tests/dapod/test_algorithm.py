"""The paper's formulas against cases worked by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapod import algorithm
from dapod.algorithm import NORMALISERS

UPDATE = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=5), min_size=1, max_size=5)
"""Tokens of one update's rollouts; 0 is not counted."""


@pytest.mark.parametrize(
    ("correct", "informative"),
    [
        ([True, False], True),
        ([True, True], False),
        ([False, False], False),
        ([True, None, False], True),
        ([True, None], False),
        ([None, None], False),
        ([], False),
    ],
)
def test_a_group_is_informative_when_some_but_not_all_judged_rollouts_are_correct(
    correct, informative
):
    assert algorithm.is_informative(correct) is informative


@pytest.mark.parametrize(
    ("tokens", "penalty"),
    [(0, 0.0), (16384, 0.0), (18432, -0.5), (20480, -1.0), (30000, -1.0)],
)
def test_the_overlong_penalty_falls_linearly_through_the_cache_of_the_paper(tokens, penalty):
    assert algorithm.overlong_penalty(tokens, 20480, 4096) == pytest.approx(penalty)


def test_a_cache_of_zero_turns_the_overlong_penalty_off():
    assert algorithm.overlong_penalty(10**6, 16, 0) == 0.0


def test_rewards_are_plus_and_minus_one_plus_the_penalty():
    assert algorithm.reward(True, -0.25) == 0.75
    assert algorithm.reward(False, 0.0) == -1.0


def test_advantages_have_mean_zero_and_unit_deviation_with_bessels_correction():
    advantages = algorithm.group_advantages([1.0, -1.0, -1.0, -1.0])
    assert sum(advantages) == pytest.approx(0.0)
    assert math.sqrt(sum(a * a for a in advantages) / 3) == pytest.approx(1.0)
    assert advantages[0] == pytest.approx(1.5)


def test_rollouts_without_a_judgement_stay_out_of_mean_and_deviation():
    with_gap = algorithm.group_advantages([1.0, None, -1.0, -1.0])
    without = algorithm.group_advantages([1.0, -1.0, -1.0])
    assert with_gap == [without[0], None, without[1], without[2]]


def test_equal_rewards_give_no_advantage():
    assert algorithm.group_advantages([0.5, 0.5]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective"),
    [
        (1.0, 2.0, 2.0),
        (1.5, 1.0, 1.28),
        (1.5, -1.0, -1.5),
        (0.5, 1.0, 0.5),
        (0.5, -1.0, -0.8),
    ],
)
def test_the_objective_is_clipped_only_where_the_update_would_go_too_far(
    ratio, advantage, objective
):
    found = algorithm.token_objective(math.log(ratio), 0.0, advantage, clip_low=0.2, clip_high=0.28)
    assert found == pytest.approx(objective)


def test_without_the_deviation_advantages_are_rewards_minus_their_mean():
    advantages = algorithm.group_advantages([1.0, None, -1.0, -1.0, -1.0], scale="none")
    assert advantages == [1.5, None, -0.5, -0.5, -0.5]


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective"),
    [(20.0, -1.0, -3.0), (2.9, -1.0, -2.9), (20.0, 1.0, 1.28), (0.5, -1.0, -0.8)],
)
def test_dual_clip_bounds_the_objective_only_below_and_only_for_negative_advantages(
    ratio, advantage, objective
):
    found = algorithm.token_objective(
        math.log(ratio), 0.0, advantage, clip_low=0.2, clip_high=0.28, dual_clip=3.0
    )
    assert found == pytest.approx(objective)


def test_the_kl_estimate_is_0_for_equal_policies_and_positive_otherwise():
    assert algorithm.reference_kl(-1.0, -1.0) == 0.0
    assert algorithm.reference_kl(math.log(0.5), math.log(0.25)) == pytest.approx(
        0.5 - math.log(0.5) - 1
    )
    assert algorithm.reference_kl(math.log(0.25), math.log(0.5)) == pytest.approx(
        2 - math.log(2) - 1
    )


def test_the_kl_estimate_has_the_mean_of_the_divergence():
    policy, reference = [0.7, 0.2, 0.1], [0.3, 0.3, 0.4]
    mean = sum(
        p * algorithm.reference_kl(math.log(p), math.log(q))
        for p, q in zip(policy, reference, strict=True)
    )
    assert mean == pytest.approx(
        sum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True))
    )


def test_the_loss_of_a_token_weighs_the_objective_and_not_the_divergence():
    assert algorithm.token_loss(2.0, importance_weight=0.5, kl=3.0, kl_coefficient=0.1) == (
        pytest.approx(0.3 - 1.0)
    )


@pytest.mark.parametrize(
    ("overlong_filter", "carries", "counted"),
    [("off", True, True), ("excluded", False, False), ("counted", False, True)],
)
def test_the_overlong_filter_masks_truncated_rollouts_and_may_count_them(
    overlong_filter, carries, counted
):
    truncated = {"judged": True, "truncated": True, "overlong_filter": overlong_filter}
    assert algorithm.carries_loss(**truncated) is carries
    assert algorithm.is_counted(**truncated) is counted
    whole = truncated | {"truncated": False}
    assert algorithm.carries_loss(**whole) and algorithm.is_counted(**whole)
    unjudged = whole | {"judged": False}
    assert not algorithm.carries_loss(**unjudged) and not algorithm.is_counted(**unjudged)


TWO_PROMPTS = [[1, 3], [0, 6]]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("prompt", [[1 / 8, 1 / 8], [0, 1 / 12]]),
        ("token", [[1 / 10, 1 / 10], [0, 1 / 10]]),
        ("sequence", [[1 / 3, 1 / 9], [0, 1 / 18]]),
        ("constant", [[1 / 30, 1 / 30], [0, 1 / 30]]),
    ],
)
def test_each_normaliser_has_its_denominator(name, weights):
    assert NORMALISERS[name](TWO_PROMPTS, 10) == [pytest.approx(group) for group in weights]


@given(UPDATE)
def test_the_weights_of_an_update_add_up_to_1_whatever_the_lengths(tokens):
    for name in ("prompt", "token", "sequence"):
        weights = NORMALISERS[name](tokens, 60)
        total = sum(
            n * w
            for lengths, shares in zip(tokens, weights, strict=True)
            for n, w in zip(lengths, shares, strict=True)
        )
        assert total == pytest.approx(1.0 if any(map(any, tokens)) else 0.0)


@given(UPDATE, st.sampled_from(sorted(NORMALISERS)))
def test_what_is_not_counted_might_as_well_not_be_there(tokens, name):
    weights = NORMALISERS[name](tokens, 60)
    left = [[n for n in group if n] for group in tokens if any(group)]
    shares = [[w for w in group if w] for group in weights if any(group)]
    assert NORMALISERS[name](left, 60) == shares


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 5))
def test_rollouts_of_one_length_weigh_the_same_under_every_normaliser(n, prompts, rollouts):
    tokens = [[n] * rollouts] * prompts
    for formula in NORMALISERS.values():
        weight = formula(tokens, n)[0][0]
        assert weight == pytest.approx(1 / (n * prompts * rollouts))


def test_the_importance_weight_is_capped_above_only():
    assert algorithm.importance_weight(0.0, math.log(0.1), 2.0) == 2.0
    assert algorithm.importance_weight(math.log(0.1), 0.0, 2.0) == pytest.approx(0.1)
