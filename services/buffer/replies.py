"""Redis' replies as records, and records as the scripts' arguments. Knows the texts, no rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dapod.types import PolicyVersion
from services.buffer.records import EndedEvaluation, EvaluationCounts, LeaseId, Planned, WorkerSeen


def versions(policies: Sequence[PolicyVersion]) -> list[list[int | str]]:
    return [[policy.number, policy.lineage] for policy in policies]


def ended(fields: Sequence[Any]) -> EndedEvaluation:
    number, lineage, problems, reason, milliseconds, results, *more = fields
    return EndedEvaluation(
        policy=PolicyVersion(number=int(number), lineage=lineage.decode()),
        problems=int(problems),
        results=tuple(results),
        next_problem=more[0] if more else None,
        dropped_because=reason.decode(),
        seconds=int(milliseconds) / 1000,
    )


def evaluation(raw: dict[str, Any]) -> EvaluationCounts:
    dropped = int(raw["meta"].get("total.evaluation_problems_dropped", 0))
    return EvaluationCounts(
        policy=policy(*raw.get("evaluating", ("", ""))),
        problems={**raw["evaluation_problems"], "dropped": dropped},
        pods=raw["evaluation_pods"],
        error=raw["evaluation_error"],
    )


def policy(number: bytes | str, lineage: bytes | str) -> PolicyVersion | None:
    if not lineage:
        return None
    text = lineage.decode() if isinstance(lineage, bytes) else lineage
    return PolicyVersion(number=int(number), lineage=text)


def planned(fields: Sequence[bytes]) -> Planned:
    group_id, version, prompt_tokens, lengths, sha256 = (field.decode() for field in fields)
    return Planned(
        group_id=group_id,
        policy_number=int(version or 0),
        prompt_tokens=int(prompt_tokens or 0),
        response_tokens=tuple(map(int, lengths.split(","))) if lengths else (),
        sha256=sha256,
    )


def lease_args(leases: Sequence[LeaseId]) -> dict[str, Any]:
    return {
        "ids": [lease.group_id for lease in leases],
        "attempts": [lease.attempt for lease in leases],
    }


def worker_args(worker: WorkerSeen) -> dict[str, str]:
    return {"worker_id": worker.worker_id, "worker": worker_text(worker)}


def worker_text(worker: WorkerSeen) -> str:
    versions = [[v.number, v.lineage] if v else None for v in (worker.loaded, worker.loading)]
    return json.dumps([worker.worker_id, *versions])


def worker(text: bytes | str) -> WorkerSeen:
    worker_id, loaded, loading = json.loads(text)
    return WorkerSeen(
        worker_id=worker_id,
        loaded=PolicyVersion(number=loaded[0], lineage=loaded[1]) if loaded else None,
        loading=PolicyVersion(number=loading[0], lineage=loading[1]) if loading else None,
    )


def with_prefix(fields: dict[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): v for name, v in fields.items() if name.startswith(prefix)}
