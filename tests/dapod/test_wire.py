"""Groups survive the wire exactly; a broken one is refused with the field named."""

import numpy as np
import pytest

from dapod import wire
from dapod.types import (
    Disposition,
    FinishReason,
    Group,
    Outcome,
    PolicySpan,
    PolicyVersion,
    Rollout,
    RunState,
    Verdict,
)
from dapod.v1 import types_pb2

POLICY = PolicyVersion(number=3, lineage="9f2c")
RIGHT = Verdict(outcome=Outcome.CORRECT, correct=True, reward=1.0, extracted="4")
HUNG = Verdict(outcome=Outcome.TIMEOUT, correct=None, reward=None)


def rollout(verdict: Verdict = RIGHT) -> Rollout:
    return Rollout(
        token_ids=np.array([5, 0, 49151], dtype=np.int32),
        logprobs=np.array([-0.25, -3.0, -1e-9], dtype=np.float32),
        finish_reason=FinishReason.STOP,
        policy_spans=(PolicySpan(policy=POLICY, tokens=3),),
        verdict=verdict,
    )


def message() -> types_pb2.Group:
    group = Group(
        group_id="0-17",
        prompt_token_ids=np.array([1, 2], dtype=np.int32),
        rollouts=(rollout(), rollout(HUNG)),
    )
    return wire.group_to_proto(group)


def refusal(broken: types_pb2.Group) -> str:
    with pytest.raises(ValueError) as caught:
        wire.group_from_proto(broken)
    return str(caught.value)


def test_a_group_survives_the_wire():
    group = wire.parse_group(message().SerializeToString())
    first, second = group.rollouts
    assert first.token_ids.tolist() == [5, 0, 49151]
    assert first.logprobs.tolist() == rollout().logprobs.tolist()
    assert first.verdict == RIGHT
    assert second.verdict is not None and second.verdict.correct is None
    assert group.policy == POLICY


def test_logprobs_of_another_length_are_refused():
    broken = message()
    broken.rollouts[1].logprobs = broken.rollouts[1].logprobs[:-4]
    assert "group.rollouts[1].logprobs" in refusal(broken)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.5])
def test_logprobs_that_are_none_are_refused(value):
    broken = message()
    broken.rollouts[0].logprobs = np.array([-1, value, -1], dtype="<f4").tobytes()
    assert "group.rollouts[0].logprobs" in refusal(broken)


@pytest.mark.parametrize("ids", [b"", b"abc", np.array([-1], dtype="<i4").tobytes()])
def test_token_ids_that_are_none_are_refused(ids):
    broken = message()
    broken.rollouts[0].token_ids = ids
    assert "group.rollouts[0].token_ids" in refusal(broken)


def test_spans_must_cover_all_tokens():
    broken = message()
    broken.rollouts[0].policy_spans[0].tokens = 2
    assert "policy_spans" in refusal(broken)


def test_a_rollout_without_verdict_or_finish_reason_is_refused():
    broken = message()
    broken.rollouts[0].ClearField("verdict")
    assert "group.rollouts[0].verdict" in refusal(broken)
    broken = message()
    broken.rollouts[0].ClearField("finish_reason")
    assert "finish_reason" in refusal(broken)


def test_a_verdict_that_contradicts_itself_is_refused():
    broken = message()
    broken.rollouts[1].verdict.correct = False
    assert "correct and reward must be set exactly when" in refusal(broken)
    broken = message()
    broken.rollouts[0].verdict.correct = False
    assert "contradicts the outcome" in refusal(broken)


def test_a_group_without_rollouts_or_id_is_refused():
    broken = message()
    del broken.rollouts[:]
    assert "group.rollouts" in refusal(broken)
    broken = message()
    broken.group_id = ""
    assert "group.group_id" in refusal(broken)


def test_every_state_and_disposition_has_its_number_on_the_wire():
    for state in RunState:
        assert wire.state_from_proto(wire.state_to_proto(state)) is state
    for disposition in Disposition:
        assert wire.disposition_from_proto(wire.disposition_to_proto(disposition)) is disposition
