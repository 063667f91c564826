"""Rows, ranks and micro-batches of a plan."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dapod.v1.buffer_pb2 import PlannedGroup
from services.trainer.batch import advantages, assemble
from services.trainer.cut import SHARED_ROW_TOKENS, cut, updates
from tests.trainer.doubles import make_group, make_plan, planned

GROUPS = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.integers(1, 60), min_size=2, max_size=6)),
    min_size=1,
    max_size=8,
)


def lines(groups):
    return [
        PlannedGroup(group_id=str(i), prompt_tokens=prompt, response_tokens=responses)
        for i, (prompt, responses) in enumerate(groups)
    ]


@given(GROUPS, st.integers(1, 5), st.integers(90, 300))
def test_every_rollout_is_trained_once_and_all_ranks_keep_step(groups, ranks, budget):
    shares = cut(lines(groups), ranks=ranks, tokens_per_micro_batch=budget)
    seen = [
        (row.group_id, index, tokens)
        for share in shares
        for rows in share
        for row in rows
        for index, tokens in zip(row.rollouts, row.response_tokens, strict=True)
    ]
    assert sorted(seen) == sorted(
        (str(g), i, n) for g, (_, responses) in enumerate(groups) for i, n in enumerate(responses)
    )
    assert len({len(share) for share in shares}) == 1 and shares[0]


@given(GROUPS, st.integers(1, 5), st.integers(90, 300))
def test_a_micro_batch_keeps_the_token_budget_with_its_padding(groups, ranks, budget):
    for share in cut(lines(groups), ranks=ranks, tokens_per_micro_batch=budget):
        for rows in share:
            assert len(rows) * max((row.fed for row in rows), default=0) <= budget


@given(GROUPS, st.integers(1, 4))
def test_ranks_get_about_the_same_tokens(groups, ranks):
    shares = cut(lines(groups), ranks=ranks, tokens_per_micro_batch=100)
    loads = [
        sum(row.prompt_tokens * len(row.rollouts) + sum(row.response_tokens) for row in rows)
        for share in shares
        for rows in [[row for micro_batch in share for row in micro_batch]]
    ]
    longest = max(prompt + max(responses) for prompt, responses in groups)
    assert max(loads) - min(loads) <= 2 * longest


def test_a_rank_needs_few_groups_beyond_its_share():
    shares = cut(lines([(5, [10] * 4)] * 8), ranks=4, tokens_per_micro_batch=1000)
    for share in shares:
        assert len({row.group_id for rows in share for row in rows}) == 2


def test_updates_are_consecutive_groups_of_the_plan():
    groups = [make_group(str(i), [2, 3], correct=[True, False]) for i in range(6)]
    plan = make_plan(0, groups, prompts_per_update=2)
    ids = [[group.group_id for group in update] for update in updates(plan)]
    assert ids == [["0", "1"], ["2", "3"], ["4", "5"]]


def micro_batch(*groups):
    (rows,) = cut([planned(g) for g in groups], ranks=1, tokens_per_micro_batch=10_000)[0]
    by_id = {g.group_id: g for g in groups}
    weights = {g.group_id: [i + 1.0 for i, _ in enumerate(g.rollouts)] for g in groups}
    return rows, assemble(rows, by_id, advantages(by_id, scale="std"), weights)


def test_every_response_token_has_the_advantage_and_weight_of_its_rollout():
    group = make_group("a", [3, 2, 1], correct=[True, False, None], prompt_tokens=4)
    _, batch = micro_batch(group)
    ids = np.concatenate([r.token_ids for r in group.rollouts])
    assert batch.targets.tolist() == ids.tolist()
    assert batch.weights.tolist() == [1.0, 1.0, 1.0, 2.0, 2.0, 3.0]
    up = 2**-0.5
    assert batch.advantages.tolist() == pytest.approx([up, up, up, -up, -up, 0.0])


def test_rollouts_of_a_prompt_share_its_row_and_do_not_see_each_other():
    group = make_group("a", [3, 2], correct=[True, False], prompt_tokens=4)
    _, batch = micro_batch(group)
    # prompt 0-3, then two tokens of the first rollout, then one of the second
    assert batch.input_ids.shape == (1, 7)
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 4]
    assert batch.columns.tolist() == [3, 4, 5, 3, 6]
    sees = [[key for key in range(7) if batch.mask[0, 0, query, key]] for query in range(7)]
    assert sees[3] == [0, 1, 2, 3]
    assert sees[5] == [0, 1, 2, 3, 4, 5]
    assert sees[6] == [0, 1, 2, 3, 6]


def test_without_a_rollout_its_row_keeps_the_others_and_the_prompt():
    one = make_group("a", [3, 2, 4], correct=[True, False, False], prompt_tokens=4)
    other = make_group("b", [2, 2], correct=[True, False], prompt_tokens=4)
    rows, batch = micro_batch(one, other)
    assert [row.group_id for row in rows] == ["a", "b"]
    # prompt 0-3, then two tokens of the first rollout, one of the second and three of the third
    assert batch.segments.tolist() == [[0] * 4 + [1, 1, 2, 3, 3, 3], [0] * 4 + [4, 5] + [0] * 4]
    assert batch.places.tolist() == [-1, 0, 1, 2, 0, 1]
    assert batch.rollouts.tolist() == [1] * 3 + [2] * 2 + [3] * 4 + [4] * 2 + [5] * 2
    gone = batch.having((batch.rollouts == 2) | (batch.rollouts >= 4))
    assert gone.tolist() == [False, False, True, False, True, True]
    left = batch.without(gone)
    kept = [True] * 6 + [False] + [True] * 3
    assert (left.input_ids[0] == batch.input_ids[0]).tolist() == kept
    assert left.input_ids[1].tolist() == [0] * 10
    assert (left.weights > 0).tolist() == [True] * 3 + [False] * 2 + [True] * 4 + [False] * 4
    assert left.rollout_logprobs[9:].tolist() == [0.0] * 4


def test_alone_every_row_has_one_rollout_with_its_prompt():
    one = make_group("a", [3, 2, 4], correct=[True, False, False], prompt_tokens=4)
    other = make_group("b", [2, 2], correct=[True, False], prompt_tokens=4)
    _, batch = micro_batch(one, other)
    last = batch.alone(2)
    assert last.having(last.weights > 0).tolist() == [False, False, False, True, False, False]
    assert last.input_ids[0, 4:7].tolist() == [0, 0, 0] and last.input_ids[1].tolist() == [0] * 10
    assert last.input_ids[0, 7:].tolist() == batch.input_ids[0, 7:].tolist()


def test_a_micro_batch_without_rows_has_no_rollout_to_drop():
    batch = assemble([], {}, {}, {})
    assert batch.having(torch.tensor([True])).tolist() == [False]
    assert batch.alone(0).input_ids.tolist() == [[0]]


def test_long_rollouts_do_without_a_mask():
    group = make_group("a", [SHARED_ROW_TOKENS, 700], correct=[True, False])
    _, batch = micro_batch(group)
    assert batch.mask is None and len(batch.input_ids) == 2


def test_a_payload_of_other_lengths_than_planned_is_refused():
    group = make_group("a", [3, 2], correct=[True, False])
    line = planned(group)
    line.response_tokens[0] = 4
    (rows,) = cut([line], ranks=1, tokens_per_micro_batch=100)[0]
    with pytest.raises(ValueError, match=r"group=a has 5 prompt tokens and rollouts of \(3, 2\)"):
        assemble(rows, {"a": group}, {"a": [1.0, -1.0]}, {"a": [1.0, 1.0]})
