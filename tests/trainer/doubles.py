"""A buffer that serves recorded batches: the trainer's other side, in tests and in replays.

    with ScriptedBuffer.of(groups, prompts_per_step=2, prompts_per_update=1) as buffer:
        ... run a trainer with DAPOD_BUFFER_ADDRESS=buffer.address ...
        assert [entry.step for entry in buffer.committed] == [0, 1, 2]

It is a real gRPC BufferService on loopback, holding the trainer to the contract: steps in order,
commits that match the plan, one lineage at a time. `ScriptedBuffer(plans, payloads)` replays plans
recorded elsewhere.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Mapping, Sequence

import grpc
import numpy as np

from dapod.ledger import LedgerEntry, entry_from_proto, entry_of, plan_digest
from dapod.rpc import Refusal, RpcServer, answering
from dapod.types import (
    FinishReason,
    Group,
    Outcome,
    PolicySpan,
    PolicyVersion,
    Rollout,
    RunState,
    Verdict,
)
from dapod.v1 import buffer_pb2 as pb
from dapod.v1 import buffer_pb2_grpc
from dapod.wire import (
    group_to_proto,
    parse_group,
    policy_from_proto,
    policy_to_proto,
    state_to_proto,
)

LONG_AGO = PolicyVersion(number=0, lineage="00000000")


def make_group(
    group_id: str,
    lengths: Sequence[int],
    *,
    correct: Sequence[bool | None],
    prompt_tokens: int = 5,
    vocabulary: int = 64,
    policy: PolicyVersion = LONG_AGO,
    truncated: Collection[int] = (),
) -> Group:
    """A group of random tokens and log-probs, the same for the same id; None is unjudged.

    `truncated` names the rollouts that were cut off at the length limit.
    """
    seed = int.from_bytes(hashlib.sha256(group_id.encode()).digest()[:4], "little")
    rng = np.random.default_rng(seed)
    rollouts = tuple(
        Rollout(
            token_ids=rng.integers(1, vocabulary, n).astype(np.int32),
            logprobs=-rng.uniform(2.0, 6.0, n).astype(np.float32),
            finish_reason=FinishReason.LENGTH if i in truncated else FinishReason.STOP,
            policy_spans=(PolicySpan(policy=policy, tokens=n),),
            verdict=_verdict(right),
        )
        for i, (n, right) in enumerate(zip(lengths, correct, strict=True))
    )
    prompt = rng.integers(1, vocabulary, prompt_tokens).astype(np.int32)
    return Group(group_id=group_id, prompt_token_ids=prompt, rollouts=rollouts)


def _verdict(right: bool | None) -> Verdict:
    if right is None:
        return Verdict(outcome=Outcome.TIMEOUT, correct=None, reward=None)
    outcome = Outcome.CORRECT if right else Outcome.WRONG
    return Verdict(outcome=outcome, correct=right, reward=1.0 if right else -1.0)


def payload_of(group: Group) -> bytes:
    """A group as Redis stores it."""
    return group_to_proto(group).SerializeToString()


def planned(group: Group) -> pb.PlannedGroup:
    """The line of a plan that names `group`."""
    return pb.PlannedGroup(
        group_id=group.group_id,
        policy_number=group.policy.number,
        prompt_tokens=len(group.prompt_token_ids),
        response_tokens=[len(rollout.token_ids) for rollout in group.rollouts],
        payload_sha256=hashlib.sha256(payload_of(group)).hexdigest(),
    )


def make_plan(step: int, groups: Sequence[Group], prompts_per_update: int) -> pb.BatchPlan:
    """The plan of a step."""
    lines = [planned(group) for group in groups]
    pairs = [(line.group_id, line.payload_sha256) for line in lines]
    return pb.BatchPlan(
        step=step,
        groups=lines,
        prompts_per_update=prompts_per_update,
        digest=plan_digest(step, prompts_per_update, pairs),
    )


class ScriptedBuffer(buffer_pb2_grpc.BufferServiceServicer):
    """Serves `plans` step by step and the payloads they name; then the run is finished."""

    def __init__(
        self,
        plans: Sequence[pb.BatchPlan],
        payloads: Mapping[str, bytes],
        *,
        in_use: Sequence[PolicyVersion] = (),
        groups_per_fetch: int = 3,
        withhold: threading.Event | None = None,
        withhold_from: int = 0,
    ) -> None:
        """The plans of step `withhold_from` and later wait for `withhold` to be set."""
        self._plans = {plan.step: plan for plan in plans}
        self._payloads = payloads
        self._in_use = in_use
        self._groups_per_fetch = groups_per_fetch
        self._withhold = withhold
        self._withhold_from = withhold_from
        self._server = RpcServer(threads=8)
        self._lock = threading.Lock()
        self.address = ""
        self.committed: list[LedgerEntry] = []
        """Of the current lineage: a resume cuts it back."""
        self.resumed: list[tuple[PolicyVersion, tuple[LedgerEntry, ...]]] = []
        self.checkpointed: list[int] = []
        self.policies: list[PolicyVersion] = []
        """All that were committed, in order, replays included."""
        self.fetched: list[str] = []
        self.refuses_resume = ""
        """Why; nothing when it does not."""
        self.evaluations: list[pb.Evaluation] = []
        """That have ended."""
        self.results_per_fetch = 3
        """How many of an evaluation's results fit a message."""
        self.evaluating = ""
        """What is open, in words."""

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        *,
        prompts_per_step: int,
        prompts_per_update: int,
        **options: object,
    ) -> ScriptedBuffer:
        """Cuts `groups` into steps."""
        steps = [groups[i : i + prompts_per_step] for i in range(0, len(groups), prompts_per_step)]
        plans = [make_plan(s, batch, prompts_per_update) for s, batch in enumerate(steps)]
        return cls(plans, {g.group_id: payload_of(g) for g in groups}, **options)  # type: ignore[arg-type]

    def __enter__(self) -> ScriptedBuffer:
        buffer_pb2_grpc.add_BufferServiceServicer_to_server(self, self._server.grpc)
        self.address = f"127.0.0.1:{self._server.start('127.0.0.1', 0)}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0.0)

    @answering
    def Resume(self, request: pb.ResumeRequest, context: grpc.ServicerContext) -> pb.ResumeResponse:
        if self.refuses_resume:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, self.refuses_resume)
        policy = policy_from_proto(request.policy)
        ledger = tuple(entry_from_proto(entry) for entry in request.ledger)
        with self._lock:
            if policy.number != len(ledger):
                raise ValueError(f"policy.number: {policy.number}, ledger of {len(ledger)} steps")
            replay = [entry.step for entry in self.committed[len(ledger) :]]
            self.committed = list(ledger)
            self.resumed.append((policy, ledger))
            self.policies.append(policy)
        return pb.ResumeResponse(replay_steps=replay)

    @answering
    def NextBatch(
        self, request: pb.NextBatchRequest, context: grpc.ServicerContext
    ) -> pb.NextBatchResponse:
        self._check_lineage(request.lineage)
        if request.step != len(self.committed):
            message = f"step {request.step} asked, {len(self.committed)} is next"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, message)
        gate = self._withhold if request.step >= self._withhold_from else None
        if gate and not gate.wait(request.wait_seconds):
            return pb.NextBatchResponse(
                state=state_to_proto(RunState.RUNNING), waiting_for="0 of 2 groups are ready"
            )
        plan = self._plans.get(request.step)
        if plan is None:
            return pb.NextBatchResponse(
                state=state_to_proto(RunState.FINISHED), waiting_for="the script has ended"
            )
        return pb.NextBatchResponse(plan=plan, state=state_to_proto(RunState.RUNNING))

    @answering
    def FetchGroups(
        self, request: pb.FetchGroupsRequest, context: grpc.ServicerContext
    ) -> pb.FetchGroupsResponse:
        ids = list(request.group_ids)[: self._groups_per_fetch]
        with self._lock:
            self.fetched += ids
        return pb.FetchGroupsResponse(groups=[self._payloads[group_id] for group_id in ids])

    @answering
    def CommitStep(
        self, request: pb.CommitStepRequest, context: grpc.ServicerContext
    ) -> pb.CommitStepResponse:
        entry, policy = entry_from_proto(request.entry), policy_from_proto(request.policy)
        self._check_lineage(policy.lineage)
        with self._lock:
            wanted = entry_of(self._plans[len(self.committed)])
            if entry != wanted or policy.number != entry.step + 1:
                raise ValueError(f"entry: step {entry.step} is not the one that was handed out")
            self.committed.append(entry)
            self.policies.append(policy)
        return pb.CommitStepResponse(
            policies_in_use=[policy_to_proto(used) for used in self._in_use],
            state=state_to_proto(RunState.RUNNING),
            sampling=self._sampled(entry.step),
        )

    @answering
    def FetchEvaluations(
        self, request: pb.FetchEvaluationsRequest, context: grpc.ServicerContext
    ) -> pb.FetchEvaluationsResponse:
        known = {policy_from_proto(policy) for policy in request.evaluated}
        news = [e for e in self.evaluations if policy_from_proto(e.policy) not in known]
        reply = pb.FetchEvaluationsResponse(
            evaluation=news[0] if news else None,
            open=int(bool(self.evaluating)),
            waiting_for=self.evaluating,
        )
        if news:
            left = [one for one in news[0].results if one.problem >= request.first_problem]
            if len(left) > self.results_per_fetch:
                reply.next_problem = left[self.results_per_fetch].problem
            del reply.evaluation.results[:]
            reply.evaluation.results.extend(left[: self.results_per_fetch])
        return reply

    @answering
    def Checkpointed(
        self, request: pb.CheckpointedRequest, context: grpc.ServicerContext
    ) -> pb.CheckpointedResponse:
        with self._lock:
            self.checkpointed.append(request.checkpoint_step)
        return pb.CheckpointedResponse(groups_freed=0)

    def _sampled(self, step: int) -> pb.SamplingStats:
        """As if nothing but the step's own groups had been sampled."""
        plan = self._plans[step]
        groups = [parse_group(self._payloads[group.group_id]) for group in plan.groups]
        verdicts = [r.verdict for g in groups for r in g.rollouts if r.verdict is not None]
        judged = [verdict for verdict in verdicts if verdict.correct is not None]
        return pb.SamplingStats(
            groups_leased=len(groups),
            groups_kept=len(groups),
            rollouts=len(verdicts),
            rollouts_judged=len(judged),
            rollouts_correct=sum(verdict.correct is True for verdict in judged),
            tokens_generated=sum(sum(group.response_tokens) for group in plan.groups),
            reward_sum=sum(verdict.reward or 0.0 for verdict in judged),
        )

    def _check_lineage(self, lineage: str) -> None:
        current = self.resumed[-1][0].lineage if self.resumed else ""
        if lineage != current:
            message = f"lineage {lineage} is not the current one, {current}"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, message)
