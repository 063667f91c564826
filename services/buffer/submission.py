"""From a SubmitGroup request to a `Submission`: what can be checked without Redis is checked here.

Dynamic sampling (section 3.2; eq. 8's condition) is decided here, by `correct` and never by reward:
without it uniform groups are counted as such all the same, and kept.
"""

from __future__ import annotations

import dataclasses
import hashlib

from dapod import algorithm, wire
from dapod.config import RunConfig
from dapod.types import Disposition, Group, Outcome, PolicyVersion, TokenIds, Verdict
from dapod.v1 import buffer_pb2
from services.buffer.problems import ProblemId, Problems
from services.buffer.prompts import Prompts
from services.buffer.records import EvaluatedSubmission, LeaseId, Submission
from services.buffer.store import UnknownLease

_EXTRACTED_CHARACTERS = 200


class SubmissionReader:
    """Raises `ValueError` naming the field, or `UnknownLease`."""

    def __init__(
        self, *, config: RunConfig, prompts: Prompts, problems: Problems | None = None
    ) -> None:
        self._problems = problems
        self._samples = 0 if config.evaluation is None else config.evaluation.samples
        self._evaluation_response_tokens = config.evaluation_response_tokens
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

    def read_evaluated(self, request: buffer_pb2.SubmitGroupRequest) -> EvaluatedSubmission | None:
        """None for a group of training."""
        lease = LeaseId.parse(request.lease_id)
        problem = None if lease is None else ProblemId.parse(lease.group_id)
        if lease is None or problem is None:
            return None
        group = wire.group_from_proto(request.group)
        self._check_evaluated(group, lease, problem)
        verdicts = [rollout.verdict for rollout in group.rollouts if rollout.verdict is not None]
        result = buffer_pb2.EvaluatedProblem(
            problem=problem.row,
            verdicts=[wire.verdict_to_proto(_shortened(verdict)) for verdict in verdicts],
            response_tokens=sum(len(rollout.token_ids) for rollout in group.rollouts),
            truncated=sum(rollout.truncated for rollout in group.rollouts),
        )
        return EvaluatedSubmission(
            lease=lease, policy=_policy(group), payload=result.SerializeToString()
        )

    def _check_evaluated(self, group: Group, lease: LeaseId, problem: ProblemId) -> None:
        try:
            leased = (self._problems or Problems([])).get(problem.row).token_ids
        except KeyError:
            raise UnknownLease(f"lease_id: {str(lease)!r} was never granted") from None
        self._check_group(group, lease, leased, self._samples, "evaluation.samples")
        self._check_responses(
            group, self._evaluation_response_tokens, "the longest response of an evaluation,"
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
        leased = self._prompts.get(lease.group_id).token_ids
        self._check_group(group, lease, leased, self._group_size, "algorithm.group_size")
        self._check_responses(group, self._max_response_tokens, "sampling.max_response_tokens =")

    @staticmethod
    def _check_group(
        group: Group, lease: LeaseId, leased: TokenIds, rollouts: int, key: str
    ) -> None:
        if group.group_id != lease.group_id:
            raise ValueError(
                f"group.group_id: {group.group_id!r}, but the lease is of {lease.group_id!r}"
            )
        if len(group.rollouts) != rollouts:
            raise ValueError(f"group.rollouts: {len(group.rollouts)}, but {key} is {rollouts}")
        if group.prompt_token_ids.tolist() != leased.tolist():
            raise ValueError("group.prompt_token_ids: not the ids that were leased")

    @staticmethod
    def _check_responses(group: Group, limit: int, key: str) -> None:
        for i, rollout in enumerate(group.rollouts):
            if len(rollout.token_ids) > limit:
                raise ValueError(
                    f"group.rollouts[{i}].token_ids: {len(rollout.token_ids)} tokens, more than "
                    f"{key} {limit}"
                )


def disposition(correct: list[bool | None]) -> Disposition:
    """What a group judged so is."""
    judged = [c for c in correct if c is not None]
    if len(judged) < 2:
        return Disposition.FAILED
    if algorithm.is_informative(correct):
        return Disposition.KEPT
    return Disposition.ALL_CORRECT if judged[0] else Disposition.ALL_WRONG


def _shortened(verdict: Verdict) -> Verdict:
    """maj@K votes by what was extracted: a runaway answer need not be kept whole."""
    extracted = verdict.extracted and verdict.extracted[:_EXTRACTED_CHARACTERS]
    return dataclasses.replace(verdict, extracted=extracted)


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
