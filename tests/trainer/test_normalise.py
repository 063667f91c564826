"""The weight of each token: from the plan and the payloads of whichever rank has them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapod.algorithm import NORMALISERS
from services.trainer.cut import cut
from services.trainer.normalise import Normaliser
from tests.trainer.doubles import make_group, planned
from tests.trainer.harness import OF_THE_LIBRARIES, make_config

pytestmark = OF_THE_LIBRARIES

FILTERS = ("off", "excluded", "counted")
ROLLOUT = st.tuples(st.integers(1, 60), st.sampled_from([True, False, None]), st.booleans())
"""Tokens, correct, truncated."""
UPDATE = st.lists(st.lists(ROLLOUT, min_size=2, max_size=5), min_size=1, max_size=4)


def make_normaliser(name, overlong_filter="off"):
    algorithm = {"loss_normaliser": name, "overlong_filter": overlong_filter}
    sampling = {"max_prompt_tokens": 16, "max_response_tokens": 60}
    return Normaliser(make_config(Path("model"), algorithm=algorithm, sampling=sampling))


def groups_of(update):
    return [
        make_group(
            str(g),
            [n for n, _, _ in rollouts],
            correct=[correct for _, correct, _ in rollouts],
            truncated=[i for i, (_, _, cut_off) in enumerate(rollouts) if cut_off],
        )
        for g, rollouts in enumerate(update)
    ]


def weights_of(normaliser, groups, ranks=1):
    """What every rank computes of its own rollouts, put together."""
    lines = [planned(group) for group in groups]
    shares = cut(lines, ranks=ranks, tokens_per_micro_batch=200)
    own = [[row for rows in share for row in rows] for share in shares]
    said: list[list[float]] = []

    def listen(flags):
        said.append(flags)
        return flags

    def ask(rows, add):
        needed = {row.group_id for row in rows}
        known = {group.group_id: group for group in groups if group.group_id in needed}
        return normaliser.weights(lines, rows, known, add)

    for rows in own:
        ask(rows, listen)
    total = [sum(flags) for flags in zip(*said, strict=True)]
    assert set(total) <= {0.0, 1.0}, "each rollout belongs to one rank"
    found = {}
    for rows in own:
        weights = ask(rows, lambda _: total)
        found |= {(r.group_id, i): weights[r.group_id][i] for r in rows for i in r.rollouts}
    return [[found[g.group_id, i] for i, _ in enumerate(g.rollouts)] for g in groups]


@given(UPDATE, st.sampled_from(sorted(NORMALISERS)), st.sampled_from(FILTERS), st.integers(2, 4))
def test_the_weights_do_not_depend_on_the_ranks(update, name, overlong_filter, ranks):
    groups, normaliser = groups_of(update), make_normaliser(name, overlong_filter)
    assert weights_of(normaliser, groups, ranks) == weights_of(normaliser, groups)


@given(UPDATE, st.sampled_from(sorted(NORMALISERS)))
def test_the_filter_decides_over_loss_and_denominator(update, name):
    def expected(carries, counts):
        tokens = [[n if counts(c, t) else 0 for n, c, t in group] for group in update]
        return [
            [w if carries(c, t) else 0.0 for w, (_, c, t) in zip(weights, group, strict=True)]
            for weights, group in zip(NORMALISERS[name](tokens, 60), update, strict=True)
        ]

    def judged(correct, _):
        return correct is not None

    def whole(correct, truncated):
        return correct is not None and not truncated

    by_filter = {"off": (judged, judged), "excluded": (whole, whole), "counted": (whole, judged)}
    for overlong_filter, rule in by_filter.items():
        found = weights_of(make_normaliser(name, overlong_filter), groups_of(update))
        assert found == expected(*rule)


def test_an_unjudged_rollout_has_no_weight_and_is_not_in_the_denominator():
    group = make_group("a", [5, 3, 2], correct=[True, None, False])
    assert weights_of(make_normaliser("prompt"), [group]) == [[pytest.approx(1 / 7), 0.0, 1 / 7]]


def test_truncation_is_what_the_engine_said_not_a_length():
    group = make_group("a", [60, 2], correct=[True, False])
    assert all(weights_of(make_normaliser("token", "excluded"), [group])[0])
