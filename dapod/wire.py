"""Types to protobuf messages and back. Whatever comes in is checked; an error names the field.

Nothing here is trusted: a `ValueError` from this module becomes INVALID_ARGUMENT at the server.
"""

from __future__ import annotations

import numpy as np

from dapod.types import (
    Disposition,
    FinishReason,
    Group,
    LogProbs,
    Outcome,
    PolicySpan,
    PolicyVersion,
    Rollout,
    RunState,
    TokenIds,
    Verdict,
)
from dapod.v1 import buffer_pb2, types_pb2


def ids_to_bytes(token_ids: TokenIds) -> bytes:
    """Little-endian int32."""
    return np.ascontiguousarray(token_ids, dtype="<i4").tobytes()


def ids_from_bytes(data: bytes, field: str) -> TokenIds:
    """[tokens] int32; refuses an empty list and negative ids."""
    if len(data) % 4 or not data:
        raise ValueError(f"{field}: {len(data)} bytes are not a non-empty list of int32 token ids")
    token_ids = np.frombuffer(data, dtype="<i4").astype(np.int32)
    if int(token_ids.min()) < 0:
        raise ValueError(f"{field}: token ids must not be negative")
    return token_ids


def logprobs_from_bytes(data: bytes, tokens: int, field: str) -> LogProbs:
    """[tokens] float32; refuses another length, NaN, infinity and positive values."""
    if len(data) != 4 * tokens:
        raise ValueError(
            f"{field}: {len(data)} bytes, but {tokens} float32 log-probs take {4 * tokens}"
        )
    logprobs = np.frombuffer(data, dtype="<f4").astype(np.float32)
    if not np.isfinite(logprobs).all():
        raise ValueError(f"{field}: log-probs must be finite")
    # Rounding lets a certain token come out a hair above 0.
    if float(logprobs.max()) > 1e-3:
        raise ValueError(f"{field}: log-probs must not be positive")
    return logprobs


def policy_to_proto(policy: PolicyVersion) -> types_pb2.PolicyVersion:
    return types_pb2.PolicyVersion(number=policy.number, lineage=policy.lineage)


def policy_from_proto(message: types_pb2.PolicyVersion, field: str = "policy") -> PolicyVersion:
    if not message.lineage:
        raise ValueError(f"{field}.lineage: must not be empty")
    return PolicyVersion(number=message.number, lineage=message.lineage)


_OUTCOMES = {outcome: types_pb2.Outcome.Value(f"OUTCOME_{outcome.name}") for outcome in Outcome}
_OUTCOMES_BACK = {number: outcome for outcome, number in _OUTCOMES.items()}
_FINISH = {r: types_pb2.FinishReason.Value(f"FINISH_REASON_{r.name}") for r in FinishReason}
_FINISH_BACK = {number: reason for reason, number in _FINISH.items()}
_STATES = {s: buffer_pb2.RunState.Value(f"RUN_STATE_{s.name}") for s in RunState}
_STATES_BACK = {number: state for state, number in _STATES.items()}
_DISPOSITIONS = {d: buffer_pb2.Disposition.Value(f"DISPOSITION_{d.name}") for d in Disposition}
_DISPOSITIONS_BACK = {number: disposition for disposition, number in _DISPOSITIONS.items()}


def state_to_proto(state: RunState) -> buffer_pb2.RunState.ValueType:
    return _STATES[state]


def state_from_proto(value: buffer_pb2.RunState.ValueType) -> RunState:
    return _STATES_BACK[value]


def disposition_to_proto(disposition: Disposition) -> buffer_pb2.Disposition.ValueType:
    return _DISPOSITIONS[disposition]


def disposition_from_proto(value: buffer_pb2.Disposition.ValueType) -> Disposition:
    return _DISPOSITIONS_BACK[value]


def verdict_to_proto(verdict: Verdict) -> types_pb2.Verdict:
    return types_pb2.Verdict(
        outcome=_OUTCOMES[verdict.outcome],
        correct=verdict.correct,
        reward=verdict.reward,
        extracted=verdict.extracted,
        seconds=verdict.seconds,
    )


def verdict_from_proto(message: types_pb2.Verdict, field: str = "verdict") -> Verdict:
    """Refuses a verdict whose parts contradict each other."""
    outcome = _OUTCOMES_BACK.get(message.outcome)
    if outcome is None:
        raise ValueError(f"{field}.outcome: must be set")
    correct = message.correct if message.HasField("correct") else None
    reward = message.reward if message.HasField("reward") else None
    if outcome.judged != (correct is not None) or outcome.judged != (reward is not None):
        raise ValueError(
            f"{field}: correct and reward must be set exactly when the outcome is judged"
        )
    if correct is not None and correct != (outcome is Outcome.CORRECT):
        raise ValueError(f"{field}.correct: {correct} contradicts the outcome {outcome}")
    if reward is not None and not np.isfinite(reward):
        raise ValueError(f"{field}.reward: must be finite")
    extracted = message.extracted if message.HasField("extracted") else None
    return Verdict(
        outcome=outcome,
        correct=correct,
        reward=reward,
        extracted=extracted,
        seconds=message.seconds,
    )


def rollout_to_proto(rollout: Rollout) -> types_pb2.Rollout:
    return types_pb2.Rollout(
        token_ids=ids_to_bytes(rollout.token_ids),
        logprobs=np.ascontiguousarray(rollout.logprobs, dtype="<f4").tobytes(),
        finish_reason=_FINISH[rollout.finish_reason],
        policy_spans=[
            types_pb2.PolicySpan(policy=policy_to_proto(span.policy), tokens=span.tokens)
            for span in rollout.policy_spans
        ],
        verdict=None if rollout.verdict is None else verdict_to_proto(rollout.verdict),
    )


def rollout_from_proto(message: types_pb2.Rollout, field: str = "rollout") -> Rollout:
    token_ids = ids_from_bytes(message.token_ids, f"{field}.token_ids")
    reason = _FINISH_BACK.get(message.finish_reason)
    if reason is None:
        raise ValueError(f"{field}.finish_reason: must be set")
    where = f"{field}.policy_spans.policy"
    spans = tuple(
        PolicySpan(policy=policy_from_proto(span.policy, where), tokens=span.tokens)
        for span in message.policy_spans
    )
    if sum(span.tokens for span in spans) != len(token_ids):
        raise ValueError(f"{field}.policy_spans: must cover all {len(token_ids)} tokens")
    return Rollout(
        token_ids=token_ids,
        logprobs=logprobs_from_bytes(message.logprobs, len(token_ids), f"{field}.logprobs"),
        finish_reason=reason,
        policy_spans=spans,
        verdict=verdict_from_proto(message.verdict, f"{field}.verdict")
        if message.HasField("verdict")
        else None,
    )


def group_to_proto(group: Group) -> types_pb2.Group:
    return types_pb2.Group(
        group_id=group.group_id,
        prompt_token_ids=ids_to_bytes(group.prompt_token_ids),
        rollouts=[rollout_to_proto(rollout) for rollout in group.rollouts],
    )


def group_from_proto(message: types_pb2.Group, field: str = "group") -> Group:
    """Refuses a group without id or rollouts, or with an unjudged one."""
    if not message.group_id:
        raise ValueError(f"{field}.group_id: must not be empty")
    if not message.rollouts:
        raise ValueError(f"{field}.rollouts: must not be empty")
    rollouts = tuple(
        rollout_from_proto(r, f"{field}.rollouts[{i}]") for i, r in enumerate(message.rollouts)
    )
    for i, rollout in enumerate(rollouts):
        if rollout.verdict is None:
            raise ValueError(f"{field}.rollouts[{i}].verdict: must be set")
    return Group(
        group_id=message.group_id,
        prompt_token_ids=ids_from_bytes(message.prompt_token_ids, f"{field}.prompt_token_ids"),
        rollouts=rollouts,
    )


def parse_group(payload: bytes) -> Group:
    """A serialised Group, as FetchGroups returns it."""
    return group_from_proto(types_pb2.Group.FromString(payload))
