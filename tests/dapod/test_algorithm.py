"""The paper's formulas against cases worked by hand."""

import math

import pytest

from dapod import algorithm


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


def test_the_importance_weight_is_capped_above_only():
    assert algorithm.importance_weight(0.0, math.log(0.1), 2.0) == 2.0
    assert algorithm.importance_weight(math.log(0.1), 0.0, 2.0) == pytest.approx(0.1)
