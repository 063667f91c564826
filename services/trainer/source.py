"""The buffer as the trainer sees it: plans, payloads, commits. Each call may be repeated and is.

Plans and commits are rank 0's business; payloads every rank fetches for itself. What arrives is
checked: the plan against its digest, each payload against the plan's checksum. Waiting beats: a
trainer that has no batch, or no buffer, is alive.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Sequence

import grpc

from dapod.config import ConfigError
from dapod.health import Health
from dapod.ledger import LedgerEntry, check_plan, entry_to_proto
from dapod.rpc import Patience, status
from dapod.types import Group, PolicyVersion, RunState
from dapod.v1.buffer_pb2 import (
    BatchPlan,
    CheckpointedRequest,
    CommitStepRequest,
    CommitStepResponse,
    Evaluation,
    FetchEvaluationsRequest,
    FetchEvaluationsResponse,
    FetchGroupsRequest,
    NextBatchRequest,
    NextBatchResponse,
    PlannedGroup,
    ResumeRequest,
)
from dapod.v1.buffer_pb2_grpc import BufferServiceStub
from dapod.v1.types_pb2 import RunIdentity
from dapod.wire import parse_group, policy_from_proto, policy_to_proto, state_from_proto
from services.trainer.phases import BEAT_SECONDS
from services.trainer.stopped import Stopped

log = logging.getLogger("dapod.trainer")

POLL_SECONDS = 10.0
"""How long one NextBatch is held open. Every rank hears of its end, so none waits much longer."""
PAUSE_SECONDS = 1.0
_IDS_PER_CALL = 256
_LOOK_UP_SECONDS = 0.2


class Source:
    """Example: `plan = source.poll(step)`, then `for group in source.fetch(plan.groups): ...`."""

    def __init__(
        self, stub: BufferServiceStub, run: RunIdentity, health: Health, stop: threading.Event
    ) -> None:
        self._stub = stub
        self._run = run
        self._health = health
        self._stop = stop
        self._patience = Patience(who="buffer", waiting=self._wait_for, stop=stop)
        self._lineage = ""

    def resume(
        self,
        policy: PolicyVersion,
        ledger: Sequence[LedgerEntry],
        evaluated: Sequence[PolicyVersion] = (),
    ) -> None:
        """Announces this start: `policy` is published, `ledger` is what its checkpoint holds,
        `evaluated` are the policies whose evaluation is on disk.

        Raises `ConfigError` when the buffer serves another run or config, or cannot go back to
        this checkpoint: nothing gets better by trying again.
        """
        request = ResumeRequest(
            run=self._run,
            policy=policy_to_proto(policy),
            ledger=[entry_to_proto(entry) for entry in ledger],
            evaluated=map(policy_to_proto, evaluated),
        )
        try:
            reply = self._patience.call(self._stub.Resume, request)
        except grpc.RpcError as error:
            if status(error) is grpc.StatusCode.FAILED_PRECONDITION:
                raise ConfigError(f"the buffer refuses this trainer: {error.details()}") from error
            raise
        self._lineage = policy.lineage
        if reply.replay_steps:
            log.info("steps %s are trained again, verbatim", list(reply.replay_steps))
        if reply.dissolved_steps:
            log.warning("steps %s had lost payloads and are cut anew", list(reply.dissolved_steps))

    def poll(self, step: int) -> NextBatchResponse:
        """The plan of `step`, or what it waits for after at most `POLL_SECONDS`."""
        request = NextBatchRequest(
            run=self._run, lineage=self._lineage, step=step, wait_seconds=POLL_SECONDS
        )
        reply = self._patience.call(self._next_batch, request)
        if reply.HasField("plan"):
            _check(reply.plan, step)
        return reply

    def heard(self, step: int, reply: NextBatchResponse) -> None:
        """Says on every rank what rank 0 was told; people read it in /readyz of each node."""
        if reply.HasField("plan"):
            self._health.doing(f"training step {step}")
        elif state_from_proto(reply.state) is RunState.FINISHED:
            self._health.waiting(f"the run is finished: {reply.waiting_for}")
        else:
            self._health.waiting(f"waiting for the batch of step {step}: {reply.waiting_for}")

    def _wait_for(self, reason: str) -> None:
        self._beat()
        self._health.waiting(reason)

    def _beat(self) -> None:
        self._health.heartbeat.beat(within=BEAT_SECONDS)

    def _next_batch(self, request: NextBatchRequest, timeout: float) -> NextBatchResponse:
        """A long poll that ends at once when the trainer is told to stop."""
        call = self._stub.NextBatch.future(request, timeout=timeout)
        while not self._stop.is_set():
            self._beat()
            try:
                return call.result(timeout=_LOOK_UP_SECONDS)
            except grpc.FutureTimeoutError:
                continue
        call.cancel()
        raise Stopped

    def fetch(self, groups: Sequence[PlannedGroup]) -> Iterator[Group]:
        """The payloads in order, each checked against the plan."""
        left = list(groups)
        while left:
            ids = [group.group_id for group in left[:_IDS_PER_CALL]]
            request = FetchGroupsRequest(run=self._run, group_ids=ids)
            self._beat()
            payloads = self._patience.call(self._stub.FetchGroups, request).groups
            if not payloads:
                raise ValueError(f"group={ids[0]}: the buffer sent no payload")
            for planned, payload in zip(left, payloads, strict=False):
                yield _verified(planned, payload)
            left = left[len(payloads) :]

    def commit(self, entry: LedgerEntry, policy: PolicyVersion) -> CommitStepResponse:
        """Says that `entry` was trained into `policy`; the reply counts what was sampled meanwhile
        and names the versions pods have loaded."""
        request = CommitStepRequest(
            run=self._run, entry=entry_to_proto(entry), policy=policy_to_proto(policy)
        )
        return self._patience.call(self._stub.CommitStep, request)

    def evaluations(self, evaluated: Sequence[PolicyVersion]) -> FetchEvaluationsResponse:
        """One that has ended and is not named in `evaluated`, if any, with all its results, and how
        many are open."""
        request = FetchEvaluationsRequest(run=self._run, evaluated=map(policy_to_proto, evaluated))
        whole = page = self._patience.call(self._stub.FetchEvaluations, request)
        while page.HasField("next_problem"):
            request.first_problem = page.next_problem
            self._beat()
            page = self._patience.call(self._stub.FetchEvaluations, request)
            _add(whole.evaluation, page.evaluation)
        return whole

    def pause(self) -> None:
        """Between two questions; raises `Stopped` when the trainer is told to stop."""
        self._beat()
        if self._stop.wait(PAUSE_SECONDS):
            raise Stopped

    def checkpointed(self, step: int) -> None:
        """Says that steps before `step` are safe on disk."""
        request = CheckpointedRequest(run=self._run, checkpoint_step=step)
        self._patience.call(self._stub.Checkpointed, request)


def _check(plan: BatchPlan, step: int) -> None:
    if plan.step != step or not plan.groups or not plan.prompts_per_update:
        raise ValueError(f"asked for step {step}, the buffer sent a plan of step {plan.step}")
    check_plan(plan)


def _add(evaluation: Evaluation, page: Evaluation) -> None:
    if page.policy != evaluation.policy:
        raise ValueError(
            f"the results of {policy_from_proto(evaluation.policy)} were freed while they were "
            f"being fetched: has another trainer started?"
        )
    evaluation.results.extend(page.results)


def _verified(planned: PlannedGroup, payload: bytes) -> Group:
    if hashlib.sha256(payload).hexdigest() != planned.payload_sha256:
        raise ValueError(f"group={planned.group_id}: its payload differs from the plan's checksum")
    group = parse_group(payload)
    if group.group_id != planned.group_id:
        raise ValueError(f"group={planned.group_id}: its payload says it is {group.group_id}")
    return group
