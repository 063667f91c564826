"""From a SubmitGroup request to a `Submission`: what can be checked without Redis is checked here.

Dynamic sampling (section 3.2; eq. 8's condition) is decided here, by `correct` and never by reward:
without it uniform groups are counted as such all the same, and kept.
"""

from __future__ import annotations

import hashlib

from dapod import algorithm, wire
from dapod.config import RunConfig
from dapod.types import Disposition, Group, Outcome, PolicyVersion
from dapod.v1 import buffer_pb2
from services.buffer.prompts import Prompts
from services.buffer.records import LeaseId, Submission
from services.buffer.store import UnknownLease


class SubmissionReader:
    """Raises `ValueError` naming the field, or `UnknownLease`."""

    def __init__(self, *, config: RunConfig, prompts: Prompts) -> None:
        self._group_size = config.algorithm.group_size
        self._max_response_tokens = config.sampling.max_response_tokens
        self._dynamic_sampling = config.algorithm.dynamic_sampling
        self._prompts = prompts

    def read(self, request: buffer_pb2.SubmitGroupRequest) -> Submission:
        lease = self._lease(request.lease_id)
        group = wire.group_from_proto(request.group)
        self._check(group, lease)
        payload = request.group.SerializeToString(deterministic=True)
        verdicts = [rollout.verdict for rollout in group.rollouts if rollout.verdict is not None]
        became = disposition([verdict.correct for verdict in verdicts])
        return Submission(
            lease=lease,
            disposition=became,
            keep=is_kept(became, dynamic_sampling=self._dynamic_sampling),
            policy=_policy(group),
            payload=payload,
            sha256=hashlib.sha256(payload).hexdigest(),
            prompt_tokens=len(group.prompt_token_ids),
            response_tokens=tuple(len(rollout.token_ids) for rollout in group.rollouts),
            counts={
                "rollouts": len(group.rollouts),
                "rollouts_judged": sum(verdict.outcome.judged for verdict in verdicts),
                "rollouts_correct": sum(verdict.outcome is Outcome.CORRECT for verdict in verdicts),
                "rollouts_truncated": sum(rollout.truncated for rollout in group.rollouts),
                "tokens_generated": sum(len(rollout.token_ids) for rollout in group.rollouts),
            },
            reward_sum=sum(verdict.reward or 0.0 for verdict in verdicts),
        )

    def _lease(self, text: str) -> LeaseId:
        lease = LeaseId.parse(text)
        try:
            if lease is not None:
                self._prompts.get(lease.group_id)
                return lease
        except KeyError:
            pass
        raise UnknownLease(f"lease_id: {text!r} was never granted")

    def _check(self, group: Group, lease: LeaseId) -> None:
        if group.group_id != lease.group_id:
            raise ValueError(
                f"group.group_id: {group.group_id!r}, but the lease is of {lease.group_id!r}"
            )
        if len(group.rollouts) != self._group_size:
            raise ValueError(
                f"group.rollouts: {len(group.rollouts)}, but algorithm.group_size is "
                f"{self._group_size}"
            )
        leased = self._prompts.get(lease.group_id).token_ids
        if group.prompt_token_ids.tolist() != leased.tolist():
            raise ValueError("group.prompt_token_ids: not the ids that were leased")
        for i, rollout in enumerate(group.rollouts):
            if len(rollout.token_ids) > self._max_response_tokens:
                raise ValueError(
                    f"group.rollouts[{i}].token_ids: {len(rollout.token_ids)} tokens, more than "
                    f"sampling.max_response_tokens = {self._max_response_tokens}"
                )


def disposition(correct: list[bool | None]) -> Disposition:
    """What a group judged so is."""
    judged = [c for c in correct if c is not None]
    if len(judged) < 2:
        return Disposition.FAILED
    if algorithm.is_informative(correct):
        return Disposition.KEPT
    return Disposition.ALL_CORRECT if judged[0] else Disposition.ALL_WRONG


def is_kept(became: Disposition, *, dynamic_sampling: bool) -> bool:
    """Whether a group goes into a batch: with dynamic sampling only an informative one does."""
    uniform = became in (Disposition.ALL_CORRECT, Disposition.ALL_WRONG)
    return became is Disposition.KEPT or (uniform and not dynamic_sampling)


def _policy(group: Group) -> PolicyVersion:
    """The one policy of the group: a lease is for one version, so a mixture is refused."""
    policies = {span.policy for rollout in group.rollouts for span in rollout.policy_spans}
    if len(policies) != 1:
        named = ", ".join(sorted(map(str, policies))) or "none"
        raise ValueError(f"group.rollouts.policy_spans.policy: one policy is wanted, got {named}")
    return policies.pop()
