"""The state of a run in Redis, as operations: each calls one script and names what it answers.

Not a place for rules: those are in `lua/`, where they are atomic. What does not fit one script is
here: the queue is refilled from `Prompts` after a grant, and a new ledger is synced before anyone
sees its batch.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import Any

from dapod.config import ConfigError, RunConfig
from dapod.ledger import LedgerEntry
from dapod.types import Disposition, PolicyVersion, RunState
from services.buffer import replies
from services.buffer.prompts import Cursor, Prompts
from services.buffer.records import (
    Committed,
    Counts,
    EvaluatedSubmission,
    Evaluations,
    Grant,
    LeaseId,
    NoPlan,
    Plan,
    Resumed,
    ServerInfo,
    Submission,
    WorkerSeen,
)
from services.buffer.scripts import Scripts, StoreAway, StoreFull

SYNC_MS = 1000
"""Longest wait for the append-only file, which is fsynced every second."""

QUEUE_EMPTY = "the queue is empty"
"""The refusal of `lease.lua` that a refill cures."""

log = logging.getLogger("dapod.buffer")


class Refused(Exception):
    """A call that is out of order or from another start of the trainer."""


class UnknownLease(Exception):
    """A lease this run never granted."""


class Store:
    """One run. Threads may share it."""

    def __init__(self, *, scripts: Scripts, prompts: Prompts, config: RunConfig) -> None:
        self._scripts = scripts
        self._prompts = prompts
        self._queue_prompts = config.buffer.queue_prompts

    def start(self, config_digest: str) -> None:
        """Binds the run to its config and data. `ConfigError` when Redis knows it with others."""
        args = {"config_digest": config_digest, "data_digest": self._prompts.digest}
        differs = [part.decode() for part in self._scripts.call("start", args)]
        if differs:
            field, there = differs
            raise ConfigError(
                f"Redis holds a run of this name with another {field.removesuffix('_digest')} "
                f"({there}, here {args[field]}): choose another run.name, or go back to what it was"
            )

    def lease(self, worker: WorkerSeen, max_prompts: int) -> Grant:
        """Grants up to `max_prompts`, and keeps the queue filled."""
        first, queued, cursor = self._lease(worker, max_prompts)
        refilled = self._refill(queued, cursor)
        missing = max_prompts - len(first.leases)
        if not missing or not refilled or first.refusal != QUEUE_EMPTY:
            return first
        rest, queued, cursor = self._lease(worker, missing)
        self._refill(queued, cursor)
        return dataclasses.replace(rest, leases=first.leases + rest.leases)

    def _lease(self, worker: WorkerSeen, max_prompts: int) -> tuple[Grant, int, Cursor]:
        args: dict[str, Any] = {**replies.worker_args(worker), "max_prompts": max_prompts}
        if worker.loaded is not None:
            args |= {"version": worker.loaded.number, "lineage": worker.loaded.lineage}
        state, refusal, number, lineage, queued, epoch, position, groups, problems = (
            self._scripts.call("lease", args)
        )
        flat = problems + groups
        pairs = zip(flat[::2], flat[1::2], strict=True)
        grant = Grant(
            leases=tuple(LeaseId(group_id=id_.decode(), attempt=attempt) for id_, attempt in pairs),
            state=RunState(state.decode()),
            policy=replies.policy(number, lineage),
            refusal=refusal.decode(),
        )
        return grant, queued, Cursor(epoch=epoch, position=position)

    def _refill(self, queued: int, cursor: Cursor) -> bool:
        """Whether the queue is full again. What was granted is not lost when Redis is away or
        full: the next call refills.
        """
        try:
            self._fill(queued, cursor)
        except (StoreAway, StoreFull) as error:
            log.warning("the queue is not refilled: %s", error)
            return False
        return True

    def _fill(self, queued: int, cursor: Cursor) -> None:
        """A compare-and-set on the cursor: when another replica was faster, it did the work."""
        # Identities trained already (a witness named them) are passed over: hence the loop.
        while 0 <= queued < self._queue_prompts:
            ids, behind = self._prompts.next_ids(cursor, self._queue_prompts - queued)
            args = {
                "from": [cursor.epoch, cursor.position],
                "to": [behind.epoch, behind.position],
                "order": self._prompts.order(cursor),
                "ids": ids,
            }
            queued, cursor = self._scripts.call("enqueue", args), behind

    def renew(self, worker: WorkerSeen, leases: Sequence[LeaseId]) -> list[LeaseId]:
        """Returns the leases that are no longer held."""
        lost = self._scripts.call(
            "renew", {**replies.worker_args(worker), **replies.lease_args(leases)}
        )
        return [leases[index - 1] for index in lost]

    def give_back(self, leases: Sequence[LeaseId], *, in_vain: bool = False) -> int:
        """Requeues the prompts of those still held; returns how many were.

        `in_vain`: the groups could not be finished. A prompt is dropped after a few of those.
        """
        args = {**replies.lease_args(leases), "in_vain": in_vain}
        return int(self._scripts.call("give_back", args))

    def expire(self) -> None:
        """Requeues the prompts of leases that ran out. Most calls do so on their way."""
        self._scripts.call("expire", {})

    def submit(self, submission: Submission) -> Disposition:
        """Raises `UnknownLease`, or `ValueError` for a group of another policy than the lease."""
        args = {
            "id": submission.lease.group_id,
            "attempt": submission.lease.attempt,
            "disposition": submission.disposition.value,
            "keep": submission.keep,
            "version": submission.policy.number,
            "lineage": submission.policy.lineage,
            "sha256": submission.sha256,
            "prompt_tokens": submission.prompt_tokens,
            "lengths": ",".join(map(str, submission.response_tokens)),
            "counts": dict(submission.counts),
            "reward_sum": repr(submission.reward_sum),
        }
        # Of a dropped group only the counts are kept: its payload need not travel, and a full
        # server takes it.
        if submission.keep:
            reply = self._scripts.call("submit", args, submission.payload)
        else:
            reply = self._scripts.call("submit_dropped", args)
        return self._disposition(reply, submission.lease, submission.policy)

    def submit_evaluated(self, submission: EvaluatedSubmission) -> Disposition:
        """Raises as `submit`."""
        args = {
            "id": submission.lease.group_id,
            "attempt": submission.lease.attempt,
            "version": submission.policy.number,
            "lineage": submission.policy.lineage,
        }
        return self._disposition(
            self._scripts.call("submit_problem", args, submission.payload),
            submission.lease,
            submission.policy,
        )

    @staticmethod
    def _disposition(reply: Sequence[bytes], lease: LeaseId, policy: PolicyVersion) -> Disposition:
        word, *rest = (part.decode() for part in reply)
        if word == "unknown":
            raise UnknownLease(f"lease_id: {lease} was never granted")
        if word == "policy":
            raise ValueError(
                f"group.rollouts.policy_spans.policy: {policy}, but the lease was "
                f"granted for v{rest[0]}-{rest[1]}"
            )
        return Disposition(word)

    def evaluations(
        self, known: Sequence[PolicyVersion], first_problem: int, max_bytes: int
    ) -> Evaluations:
        """Frees the results of `known` and returns those of one that is not, from a problem on, as
        many as fit, at least one."""
        args = {
            "evaluated": replies.versions(known),
            "first_problem": first_problem,
            "max_bytes": max_bytes,
        }
        left, waiting_for, *ended = self._scripts.call("evaluations", args)
        return Evaluations(
            ended=replies.ended(ended) if ended else None,
            open=left,
            waiting_for=waiting_for.decode(),
        )

    def next_batch(self, step: int, lineage: str) -> Plan | NoPlan:
        """The plan of a step, cut now if it can be. Raises `Refused`."""
        word, *rest = self._scripts.call("cut", {"step": step, "lineage": lineage})
        if word == b"refused":
            raise Refused(rest[0].decode())
        if word in (b"waiting", b"finished"):
            return NoPlan(finished=word == b"finished", reason=rest[0].decode())
        digest, flat = rest
        plan = Plan(
            step=step,
            digest=digest.decode(),
            groups=tuple(replies.planned(flat[i : i + 5]) for i in range(0, len(flat), 5)),
            new=word == b"cut",
        )
        if plan.new:
            self._scripts.call_synced("sync", {"step": step}, SYNC_MS)
        return plan

    def fetch(self, group_ids: Sequence[str], max_bytes: int) -> list[bytes]:
        """The first payloads that fit, at least one; an empty one is not there."""
        args = {"ids": list(group_ids), "max_bytes": max_bytes}
        payloads: list[bytes] = self._scripts.call("fetch", args)
        return payloads

    def commit(self, entry: LedgerEntry, policy: PolicyVersion) -> Committed:
        """Raises `Refused`."""
        args = {
            "step": entry.step,
            "ids": entry.group_ids,
            "digest": entry.digest,
            "lineage": policy.lineage,
        }
        state, workers, stats, pinned = self._accepted("commit", args)
        return Committed(
            state=RunState(state.decode()),
            workers=tuple(map(replies.worker, workers)),
            stats={name: float(value) for name, value in json.loads(stats).items()},
            pinned=tuple(
                PolicyVersion(number=int(number), lineage=lineage.decode())
                for number, lineage in pinned
            ),
        )

    def checkpointed(self, step: int) -> int:
        """Frees the payloads of the steps before; returns how many. Raises `Refused`."""
        (freed,) = self._accepted("checkpointed", {"step": step})
        return int(freed)

    def resume(
        self,
        policy: PolicyVersion,
        ledger: Sequence[LedgerEntry],
        evaluated: Sequence[PolicyVersion] = (),
    ) -> Resumed:
        """`evaluated` are the policies whose results the trainer has. Raises `Refused`."""
        entries = [{"ids": " ".join(entry.group_ids), "digest": entry.digest} for entry in ledger]
        args = {
            "step": policy.number,
            "lineage": policy.lineage,
            "ledger": entries,
            "evaluated": replies.versions(evaluated),
        }
        replay, dissolved = self._accepted("resume", args)
        return Resumed(replay_steps=tuple(replay), dissolved_steps=tuple(dissolved))

    def _accepted(self, script: str, args: dict[str, Any]) -> list[Any]:
        reply: list[Any] = self._scripts.call(script, args)
        if reply[0] == b"refused":
            raise Refused(reply[1].decode())
        return reply[1:]

    def counts(self) -> Counts:
        """Counts everything and recounts the conservation error."""
        self.expire()
        raw = json.loads(self._scripts.call("status", {}))
        meta: dict[str, str] = raw["meta"]
        return Counts(
            state=RunState(raw["state"]),
            end_reason=raw["end_reason"],
            policy=replies.policy(meta.get("policy_number", ""), meta.get("policy_lineage", "")),
            checkpoint_step=int(meta.get("checkpoint_step", 0)),
            next_step=int(meta.get("next_step", 0)),
            epoch=int(meta.get("epoch", 0)),
            groups={name: int(count) for name, count in raw["cards"].items()},
            totals={
                name: int(float(value))
                for name, value in replies.with_prefix(meta, "total.").items()
            },
            stats={
                name: float(value) for name, value in replies.with_prefix(meta, "stat.").items()
            },
            conservation_error=int(raw["conservation_error"]),
            faults=tuple(raw["faults"]),
            payload_bytes=int(raw["payload_bytes"]),
            capacity=int(raw["capacity"]),
            workers=tuple(map(replies.worker, raw["workers"])),
            evaluation=replies.evaluation(raw),
        )

    def ping(self) -> None:
        """Raises `StoreAway` when Redis does not answer."""
        self._scripts.ping()

    def server(self) -> ServerInfo:
        """Answers even when Redis refuses to write. Raises `StoreAway`."""
        memory, disk = self._scripts.info("memory"), self._scripts.info("persistence")
        states = (disk.get("aof_last_write_status"), disk.get("aof_last_bgrewrite_status"))
        return ServerInfo(
            memory_bytes=int(memory["used_memory"]),
            memory_limit_bytes=int(memory.get("maxmemory", 0)),
            append_only=bool(disk.get("aof_enabled", 0)),
            append_only_ok="err" not in states,
            delayed_fsyncs=int(disk.get("aof_delayed_fsync", 0)),
        )
