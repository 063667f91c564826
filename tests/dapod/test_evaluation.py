"""avg@k, pass@k, maj@k against brute force, and intervals that cover what they should."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapod.evaluation import (
    ProblemScore,
    avg_at_k,
    confidence_interval,
    maj_at_k,
    metrics,
    pass_at_k,
    score,
)
from dapod.types import Outcome, Verdict

ANSWERS = st.lists(st.booleans(), min_size=1, max_size=8)
VOTES = st.lists(
    st.tuples(st.sampled_from(["1", "2", "3", None]), st.booleans()), min_size=1, max_size=10
)


def verdict(outcome: Outcome, extracted: str | None = None) -> Verdict:
    correct = outcome is Outcome.CORRECT if outcome.judged else None
    return Verdict(outcome=outcome, correct=correct, reward=None, extracted=extracted)


@given(answers=ANSWERS, k=st.integers(1, 8))
def test_pass_at_k_is_the_share_of_all_choices_of_k_that_hold_a_correct_one(answers, k):
    k = min(k, len(answers))
    choices = list(itertools.combinations(answers, k))
    share = sum(any(choice) for choice in choices) / len(choices)
    assert pass_at_k(len(answers), sum(answers), k) == pytest.approx(share)


@given(answers=ANSWERS)
def test_pass_at_1_is_the_mean_and_pass_at_n_is_whether_any_is_correct(answers):
    n, c = len(answers), sum(answers)
    assert pass_at_k(n, c, 1) == pytest.approx(avg_at_k([answers]))
    assert pass_at_k(n, c, n) == float(any(answers))


def test_pass_at_k_stays_exact_where_factorials_would_overflow():
    expected = 1 - math.prod((9_900 - i) / (10_000 - i) for i in range(64))
    assert pass_at_k(10_000, 100, 64) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0), (0, 0, 1)])
def test_pass_at_k_refuses_what_cannot_be(n, c, k):
    with pytest.raises(ValueError, match=r"^[ck]:"):
        pass_at_k(n, c, k)


@given(problems=st.lists(ANSWERS, min_size=1, max_size=5))
def test_avg_at_k_weighs_every_problem_the_same(problems):
    assert avg_at_k(problems) == pytest.approx(
        statistics.fmean(statistics.fmean(map(float, answers)) for answers in problems)
    )


def test_avg_at_k_refuses_a_problem_without_answers():
    for problems in ([], [[True], []]):
        with pytest.raises(ValueError, match="at least one judged answer"):
            avg_at_k(problems)


@given(votes=VOTES, seed=st.integers(0, 99))
def test_maj_at_k_is_what_a_coin_among_the_most_frequent_gives_on_average(votes, seed):
    strings = [extracted for extracted, _ in votes if extracted is not None]
    counts = {string: strings.count(string) for string in strings}
    winners = [s for s, count in counts.items() if count == max(counts.values())]
    shares = [
        statistics.fmean(float(correct) for extracted, correct in votes if extracted == winner)
        for winner in winners
    ]
    assert maj_at_k(votes) == pytest.approx(statistics.fmean(shares) if shares else 0.0)
    random.Random(seed).shuffle(votes)
    assert maj_at_k(votes) == pytest.approx(statistics.fmean(shares) if shares else 0.0)


def test_a_majority_of_wrong_answers_that_differ_does_not_outvote_the_correct_one():
    assert maj_at_k([("7", True), ("7", True), ("1", False), ("2", False), (None, False)]) == 1.0


def test_a_tie_counts_as_the_share_of_the_tied_that_are_correct():
    assert maj_at_k([("7", True), ("8", False)]) == 0.5
    assert maj_at_k([("7", True), ("8", False), ("9", False)]) == pytest.approx(1 / 3)


def test_answers_without_an_extracted_string_do_not_vote():
    assert maj_at_k([(None, False), (None, False), ("7", True)]) == 1.0
    assert maj_at_k([(None, False)]) == 0.0
    with pytest.raises(ValueError, match="votes"):
        maj_at_k([])


def test_what_the_verifier_could_not_judge_leaves_the_problems_n():
    given = [Outcome.CORRECT, Outcome.WRONG, Outcome.TIMEOUT, Outcome.KILLED, Outcome.ERROR]
    assert score([verdict(outcome, "7") for outcome in given]) == ProblemScore(
        judged=2, correct=1, majority=0.5
    )
    assert score([verdict(Outcome.TIMEOUT)]) == ProblemScore(judged=0, correct=0, majority=None)


def test_unparsed_is_a_wrong_answer_that_does_not_vote():
    scored = score([verdict(Outcome.CORRECT, "7"), verdict(Outcome.UNPARSED)])
    assert scored == ProblemScore(judged=2, correct=1, majority=1.0)


def test_metrics_leave_out_problems_without_a_judged_answer():
    scores = [
        ProblemScore(judged=4, correct=1, majority=0.0),
        ProblemScore(judged=0, correct=0, majority=None),
        ProblemScore(judged=4, correct=3, majority=1.0),
    ]
    found = metrics(scores, rollouts=4, pass_at=[1, 2, 4])
    assert {name: estimate.value for name, estimate in found.items()} == {
        "avg@4": 0.5,
        "pass@1": 0.5,
        "pass@2": 0.75,
        "pass@4": 1.0,
        "maj@4": 0.5,
    }
    assert metrics(scores[1:2], rollouts=4, pass_at=[4]) == {}


def test_a_problem_short_of_answers_has_pass_at_what_it_has():
    short = ProblemScore(judged=2, correct=1, majority=0.5)
    assert metrics([short], rollouts=4, pass_at=[4])["pass@4"].value == 1.0


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_an_interval_holds_the_mean_and_stays_within_0_and_1(values):
    interval = confidence_interval(values)
    assert 0.0 <= interval.low <= statistics.fmean(values) <= interval.high <= 1.0


@given(solved=st.integers(0, 40), count=st.integers(2, 40))
def test_with_all_or_nothing_it_is_wilsons_interval(solved, count):
    solved = min(solved, count)
    n, p, z = (count - 1 if 0 < solved < count else count), solved / count, 1.959963984540054
    # The two ends are where the score statistic is exactly z: p and the end differ by z errors.
    interval = confidence_interval([1.0] * solved + [0.0] * (count - solved))
    for end in (interval.low, interval.high):
        if 0.0 < end < 1.0 and end != p:
            assert abs(p - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-6)


@given(values=st.lists(st.floats(0.1, 0.9), min_size=3, max_size=20))
def test_four_times_the_problems_give_about_half_the_width(values):
    one, four = confidence_interval(values), confidence_interval(values * 4)
    assert four.high - four.low <= one.high - one.low + 1e-12


def test_nothing_solved_is_not_certainty():
    none, everything = confidence_interval([0.0] * 30), confidence_interval([1.0] * 30)
    assert none.low == 0.0 and none.high == pytest.approx(0.1135, abs=1e-3)
    assert everything.high == 1.0 and everything.low == pytest.approx(1 - 0.1135, abs=1e-3)


@settings(max_examples=3)
@given(seed=st.integers(0, 2**32))
def test_about_95_of_100_intervals_hold_the_true_mean(seed):
    generator = random.Random(seed)

    def problem() -> float:
        p = generator.betavariate(1, 1)
        return sum(generator.random() < p for _ in range(8)) / 8

    intervals = [confidence_interval([problem() for _ in range(30)]) for _ in range(300)]
    assert 0.90 < statistics.fmean(i.low <= 0.5 <= i.high for i in intervals) < 0.99


@pytest.mark.parametrize("values", [[], [1.1], [-0.1], [math.nan]])
def test_an_interval_refuses_what_is_no_share(values):
    with pytest.raises(ValueError, match="per_problem"):
        confidence_interval(values)
