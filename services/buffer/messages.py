"""The store's records as protobuf messages, one function each."""

from __future__ import annotations

from collections.abc import Mapping

from dapod import wire
from dapod.v1 import buffer_pb2
from services.buffer.records import (
    Counts,
    EndedEvaluation,
    EvaluationCounts,
    Evaluations,
    Plan,
    WorkerSeen,
)


def plan_to_proto(plan: Plan, prompts_per_update: int) -> buffer_pb2.BatchPlan:
    return buffer_pb2.BatchPlan(
        step=plan.step,
        groups=[
            buffer_pb2.PlannedGroup(
                group_id=group.group_id,
                policy_number=group.policy_number,
                prompt_tokens=group.prompt_tokens,
                response_tokens=group.response_tokens,
                payload_sha256=group.sha256,
            )
            for group in plan.groups
        ],
        prompts_per_update=prompts_per_update,
        digest=plan.digest,
    )


def stats_to_proto(stats: Mapping[str, float]) -> buffer_pb2.SamplingStats:
    sums = ("reward_sum", "seconds_evaluate")
    counts = {name: int(value) for name, value in stats.items() if name not in sums}
    return buffer_pb2.SamplingStats(
        **counts,
        reward_sum=stats.get("reward_sum", 0.0),
        seconds_evaluate=stats.get("seconds_evaluate", 0.0),
    )


def worker_to_proto(worker: WorkerSeen) -> buffer_pb2.Worker:
    return buffer_pb2.Worker(
        worker_id=worker.worker_id,
        loaded=None if worker.loaded is None else wire.policy_to_proto(worker.loaded),
        loading=None if worker.loading is None else wire.policy_to_proto(worker.loading),
    )


def status_to_proto(counts: Counts) -> buffer_pb2.GetStatusResponse:
    return buffer_pb2.GetStatusResponse(
        state=wire.state_to_proto(counts.state),
        end_reason=counts.end_reason,
        policy=None if counts.policy is None else wire.policy_to_proto(counts.policy),
        checkpoint_step=counts.checkpoint_step,
        next_step=counts.next_step,
        **{f"groups_{place}": number for place, number in counts.groups.items()},
        conservation_error=counts.conservation_error,
        payload_bytes=counts.payload_bytes,
        capacity_groups=counts.capacity,
        workers=map(worker_to_proto, counts.workers),
        sampling=stats_to_proto(counts.stats),
        groups_stale_ever=counts.totals.get("stale", 0),
        evaluation=_evaluation_status(counts.evaluation),
    )


def _evaluation_status(counts: EvaluationCounts) -> buffer_pb2.EvaluationStatus:
    return buffer_pb2.EvaluationStatus(
        policy=None if counts.policy is None else wire.policy_to_proto(counts.policy),
        **{f"problems_{place}": number for place, number in counts.problems.items()},
        pods=counts.pods,
        conservation_error=counts.error,
    )


def evaluations_to_proto(found: Evaluations) -> buffer_pb2.FetchEvaluationsResponse:
    return buffer_pb2.FetchEvaluationsResponse(
        evaluation=None if found.ended is None else _ended_to_proto(found.ended),
        open=found.open,
        waiting_for=found.waiting_for,
        next_problem=None if found.ended is None else found.ended.next_problem,
    )


def _ended_to_proto(ended: EndedEvaluation) -> buffer_pb2.Evaluation:
    return buffer_pb2.Evaluation(
        policy=wire.policy_to_proto(ended.policy),
        problems=ended.problems,
        results=map(buffer_pb2.EvaluatedProblem.FromString, ended.results),
        dropped_because=ended.dropped_because,
        seconds=ended.seconds,
    )
