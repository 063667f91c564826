"""BufferService: requests in, replies out. Checks who asks, translates, holds the long poll open.

Everything else is `submission` (is this a group?) and `store` (what becomes of it?).
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import grpc

from dapod import wire
from dapod.config import RunConfig
from dapod.ledger import LedgerEntry, entry_from_proto
from dapod.rpc import Refusal, answering
from dapod.types import PolicyVersion, RunState
from dapod.v1 import buffer_pb2, buffer_pb2_grpc, rollout_pb2, types_pb2
from services.buffer import messages
from services.buffer.metrics import BufferMetrics
from services.buffer.problems import ProblemId, Problems
from services.buffer.prompts import Prompt, Prompts
from services.buffer.records import Committed, LeaseId, NoPlan, Plan, WorkerSeen
from services.buffer.scripts import StoreAway, StoreFull
from services.buffer.store import Refused, Store, UnknownLease
from services.buffer.submission import SubmissionReader

POLL_SECONDS = 0.05
"""Between two looks at the store: submissions through another replica are seen this late."""
MAX_WAIT_SECONDS = 60.0
MAX_FETCH_BYTES = 32 * 1024 * 1024
RETRY_SECONDS = 0.2
"""How soon a rollout with free slots asks again."""

log = logging.getLogger("dapod.buffer")
Reply = TypeVar("Reply")

_CODES: dict[type[Exception], grpc.StatusCode] = {
    Refused: grpc.StatusCode.FAILED_PRECONDITION,
    UnknownLease: grpc.StatusCode.NOT_FOUND,
    StoreFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StoreAway: grpc.StatusCode.UNAVAILABLE,
}


def serving(handler: Callable[..., Reply]) -> Callable[..., Reply]:
    """Decorates a method: measures, checks the caller's run, gives refusals a status."""

    @answering
    @functools.wraps(handler)
    def serve(self: BufferServicer, request: Any, context: grpc.ServicerContext) -> Reply:
        with self.metrics.measured(handler.__name__) as outcome:
            try:
                self.check_run(request.run)
                return handler(self, request, context)
            except tuple(_CODES) as error:
                outcome.code = _CODES[type(error)]
                raise Refusal(outcome.code, str(error)) from error
            except ValueError:
                outcome.code = grpc.StatusCode.INVALID_ARGUMENT
                raise

    return serve


class BufferServicer(buffer_pb2_grpc.BufferServiceServicer):
    def __init__(
        self,
        *,
        store: Store,
        prompts: Prompts,
        config: RunConfig,
        run_id: str,
        metrics: BufferMetrics,
        stop: threading.Event,
        problems: Problems | None = None,
    ) -> None:
        self.metrics = metrics
        self._store = store
        self._prompts = prompts
        self._problems = problems or Problems([])
        self._config = config
        self._run = types_pb2.RunIdentity(run_id=run_id, config_digest=config.digest())
        self._reader = SubmissionReader(config=config, prompts=prompts, problems=problems)
        self._stop = stop
        self._submitted = threading.Condition()

    def check_run(self, run: types_pb2.RunIdentity) -> None:
        """Raises `Refused` for a caller of another run or config."""
        for field in ("run_id", "config_digest"):
            theirs, ours = getattr(run, field), getattr(self._run, field)
            if theirs != ours:
                raise Refused(
                    f"run.{field}: this buffer serves {ours!r}, not {theirs!r}: start buffer and "
                    f"caller from the same config file, or choose another run id"
                )

    @serving
    def LeasePrompts(
        self, request: buffer_pb2.LeasePromptsRequest, _: grpc.ServicerContext
    ) -> buffer_pb2.LeasePromptsResponse:
        worker = _worker(request.worker)
        grant = self._store.lease(worker, min(request.max_prompts, 4096))
        for lease in grant.leases:
            log.info("group=%s leased as %s to %s", lease.group_id, lease, worker.worker_id)
        return buffer_pb2.LeasePromptsResponse(
            leases=map(self._lease, grant.leases),
            policy=None if grant.policy is None else wire.policy_to_proto(grant.policy),
            state=wire.state_to_proto(grant.state),
            refusal=grant.refusal,
            lease_seconds=self._config.buffer.lease_seconds,
            retry_seconds=RETRY_SECONDS,
        )

    def _lease(self, lease: LeaseId) -> buffer_pb2.Lease:
        problem = ProblemId.parse(lease.group_id)
        if problem is not None:
            return self._evaluation_lease(lease, self._problems.get(problem.row))
        prompt, sampling = self._prompts.get(lease.group_id), self._config.sampling
        return buffer_pb2.Lease(
            lease_id=str(lease),
            group_id=lease.group_id,
            purpose=buffer_pb2.PURPOSE_TRAIN,
            prompt_token_ids=wire.ids_to_bytes(prompt.token_ids),
            sampling=rollout_pb2.SamplingParameters(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_response_tokens=sampling.max_response_tokens,
                rollouts=self._config.algorithm.group_size,
            ),
            answer=prompt.answer,
            verifier=self._config.data.verifier,
        )

    def _evaluation_lease(self, lease: LeaseId, prompt: Prompt) -> buffer_pb2.Lease:
        evaluation = self._config.evaluation
        assert evaluation is not None, "only a run that evaluates has problems"
        return buffer_pb2.Lease(
            lease_id=str(lease),
            group_id=lease.group_id,
            purpose=buffer_pb2.PURPOSE_EVALUATE,
            prompt_token_ids=wire.ids_to_bytes(prompt.token_ids),
            sampling=rollout_pb2.SamplingParameters(
                temperature=evaluation.temperature,
                top_p=evaluation.top_p,
                max_response_tokens=self._config.evaluation_response_tokens,
                rollouts=evaluation.samples,
            ),
            answer=prompt.answer,
            verifier=evaluation.data.verifier,
        )

    @serving
    def RenewLeases(
        self, request: buffer_pb2.RenewLeasesRequest, _: grpc.ServicerContext
    ) -> buffer_pb2.RenewLeasesResponse:
        parsed = {text: LeaseId.parse(text) for text in request.lease_ids}
        known = [lease for lease in parsed.values() if lease is not None]
        lost = {str(lease) for lease in self._store.renew(_worker(request.worker), known)}
        lost |= {text for text, lease in parsed.items() if lease is None}
        return buffer_pb2.RenewLeasesResponse(lost_lease_ids=[id_ for id_ in parsed if id_ in lost])

    @serving
    def ReturnLeases(
        self, request: buffer_pb2.ReturnLeasesRequest, _: grpc.ServicerContext
    ) -> buffer_pb2.ReturnLeasesResponse:
        leases = [lease for text in request.lease_ids if (lease := LeaseId.parse(text))]
        for lease in leases:
            log.info(
                "group=%s returned by %s: %s",
                lease.group_id,
                request.worker.worker_id,
                request.reason,
            )
        returned = self._store.give_back(leases, in_vain=request.in_vain)
        return buffer_pb2.ReturnLeasesResponse(returned=returned)

    @serving
    def SubmitGroup(
        self, request: buffer_pb2.SubmitGroupRequest, _: grpc.ServicerContext
    ) -> buffer_pb2.SubmitGroupResponse:
        evaluated = self._reader.read_evaluated(request)
        if evaluated is not None:
            became, lease = self._store.submit_evaluated(evaluated), evaluated.lease
        else:
            submission = self._reader.read(request)
            became, lease = self._store.submit(submission), submission.lease
        log.info("group=%s submitted as %s: %s", lease.group_id, lease, became)
        with self._submitted:
            self._submitted.notify_all()
        return buffer_pb2.SubmitGroupResponse(disposition=wire.disposition_to_proto(became))

    @serving
    def NextBatch(
        self, request: buffer_pb2.NextBatchRequest, context: grpc.ServicerContext
    ) -> buffer_pb2.NextBatchResponse:
        found = self._wait_for_batch(request, context)
        if isinstance(found, NoPlan):
            state = RunState.FINISHED if found.finished else RunState.RUNNING
            return buffer_pb2.NextBatchResponse(
                state=wire.state_to_proto(state), waiting_for=found.reason
            )
        if found.new:
            self.metrics.handed_out(found)
            log.info("step %d is cut: digest %s", found.step, found.digest)
        return buffer_pb2.NextBatchResponse(
            plan=messages.plan_to_proto(found, self._config.algorithm.prompts_per_update),
            state=wire.state_to_proto(RunState.RUNNING),
        )

    def _wait_for_batch(
        self, request: buffer_pb2.NextBatchRequest, context: grpc.ServicerContext
    ) -> Plan | NoPlan:
        """The long poll: looks after each submission here, and now and then for other replicas'."""
        deadline = time.monotonic() + min(request.wait_seconds, MAX_WAIT_SECONDS)
        while True:
            found = self._store.next_batch(request.step, request.lineage)
            late = time.monotonic() >= deadline or self._stop.is_set() or not context.is_active()
            if isinstance(found, Plan) or found.finished or late:
                return found
            with self._submitted:
                self._submitted.wait(POLL_SECONDS)

    @serving
    def FetchGroups(
        self, request: buffer_pb2.FetchGroupsRequest, _: grpc.ServicerContext
    ) -> buffer_pb2.FetchGroupsResponse:
        payloads = self._store.fetch(request.group_ids, MAX_FETCH_BYTES)
        for group_id, payload in zip(request.group_ids, payloads, strict=False):
            if not payload:
                raise Refusal(
                    grpc.StatusCode.NOT_FOUND,
                    f"group_ids: {group_id} has no payload (never, or freed)",
                )
        return buffer_pb2.FetchGroupsResponse(groups=payloads)

    @serving
    def CommitStep(
        self, request: buffer_pb2.CommitStepRequest, _: grpc.ServicerContext
    ) -> buffer_pb2.CommitStepResponse:
        entry, policy = self._entry(request.entry, "entry"), wire.policy_from_proto(request.policy)
        if policy.number != entry.step + 1:
            raise ValueError(
                f"policy.number: step {entry.step} publishes v{entry.step + 1}, not {policy}"
            )
        committed = self._store.commit(entry, policy)
        log.info("step %d is committed: %s, digest %s", entry.step, policy, entry.digest)
        return buffer_pb2.CommitStepResponse(
            policies_in_use=map(wire.policy_to_proto, _in_use(committed)),
            state=wire.state_to_proto(committed.state),
            sampling=messages.stats_to_proto(committed.stats),
        )

    @serving
    def Checkpointed(
        self, request: buffer_pb2.CheckpointedRequest, _: grpc.ServicerContext
    ) -> buffer_pb2.CheckpointedResponse:
        freed = self._store.checkpointed(request.checkpoint_step)
        log.info("checkpoint %d: %d payloads freed", request.checkpoint_step, freed)
        return buffer_pb2.CheckpointedResponse(groups_freed=freed)

    @serving
    def Resume(
        self, request: buffer_pb2.ResumeRequest, _: grpc.ServicerContext
    ) -> buffer_pb2.ResumeResponse:
        policy = wire.policy_from_proto(request.policy)
        ledger = [self._entry(e, f"ledger[{i}]") for i, e in enumerate(request.ledger)]
        if len(ledger) != policy.number or any(e.step != i for i, e in enumerate(ledger)):
            raise ValueError(
                f"ledger: must hold the steps 0 to {policy.number - 1}, each once, in order"
            )
        if len({id_ for entry in ledger for id_ in entry.group_ids}) != sum(
            len(entry.group_ids) for entry in ledger
        ):
            raise ValueError("ledger: a group stands in two steps")
        resumed = self._store.resume(policy, ledger, _versions(request.evaluated))
        log.info(
            "resumed at %s: replay %s, dissolved %s",
            policy,
            resumed.replay_steps,
            resumed.dissolved_steps,
        )
        return buffer_pb2.ResumeResponse(
            replay_steps=resumed.replay_steps, dissolved_steps=resumed.dissolved_steps
        )

    def _entry(self, message: buffer_pb2.LedgerEntry, field: str) -> LedgerEntry:
        entry = entry_from_proto(message, field)
        wanted = self._config.algorithm.prompts_per_step
        if len(entry.group_ids) != wanted:
            raise ValueError(
                f"{field}.group_ids: {len(entry.group_ids)}, but a step has {wanted} groups"
            )
        for group_id in entry.group_ids:
            try:
                self._prompts.get(group_id)
            except KeyError:
                raise ValueError(
                    f"{field}.group_ids: {group_id!r} is no group of this run"
                ) from None
        return entry

    @serving
    def FetchEvaluations(
        self, request: buffer_pb2.FetchEvaluationsRequest, _: grpc.ServicerContext
    ) -> buffer_pb2.FetchEvaluationsResponse:
        known = _versions(request.evaluated)
        found = self._store.evaluations(known, request.first_problem, MAX_FETCH_BYTES)
        return messages.evaluations_to_proto(found)

    @serving
    def GetStatus(
        self, request: buffer_pb2.GetStatusRequest, _: grpc.ServicerContext
    ) -> buffer_pb2.GetStatusResponse:
        return messages.status_to_proto(self._store.counts())


def _worker(message: buffer_pb2.Worker) -> WorkerSeen:
    if not message.worker_id:
        raise ValueError("worker.worker_id: must not be empty")
    return WorkerSeen(
        worker_id=message.worker_id,
        loaded=_version(message.loaded, "worker.loaded") if message.HasField("loaded") else None,
        loading=_version(message.loading, "worker.loading")
        if message.HasField("loading")
        else None,
    )


def _version(message: types_pb2.PolicyVersion, field: str) -> PolicyVersion:
    return wire.policy_from_proto(message, field)


def _versions(policies: Iterable[types_pb2.PolicyVersion]) -> list[PolicyVersion]:
    return [_version(policy, f"evaluated[{i}]") for i, policy in enumerate(policies)]


def _in_use(committed: Committed) -> list[PolicyVersion]:
    named = {v for worker in committed.workers for v in (worker.loaded, worker.loading)}
    named.update(committed.pinned)
    return sorted(version for version in named if version is not None)
