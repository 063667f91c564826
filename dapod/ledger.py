"""The ledger of a step: which groups it trains, in which order, and the digest both sides check.

The buffer writes it to Redis before a batch is handed out; the trainer keeps it in its checkpoints
and carries it back with every commit, so either can lose it and have it rebuilt from the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from dapod.v1 import buffer_pb2


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """Who was trained in one step."""

    step: int
    group_ids: tuple[str, ...]
    """In training order."""
    digest: str
    """`plan_digest` of the step's plan."""


def plan_digest(step: int, prompts_per_update: int, groups: Iterable[tuple[str, str]]) -> str:
    """SHA-1 in hex over step, cut into updates, and each group's id and payload sha256, in order.

    Example: `plan_digest(7, 8, [("0-12", sha_a), ("0-3", sha_b)])` hashes the text
    `"7 8\\n0-12 <sha_a>\\n0-3 <sha_b>\\n"`. SHA-1 is what a Lua script in Redis offers; it guards
    against loss and mix-ups, the payloads' SHA-256 against the rest.
    """
    lines = [f"{step} {prompts_per_update}\n"]
    lines += [f"{group_id} {sha256}\n" for group_id, sha256 in groups]
    return hashlib.sha1("".join(lines).encode(), usedforsecurity=False).hexdigest()


def check_plan(plan: buffer_pb2.BatchPlan) -> None:
    """Raises `ValueError` unless the plan's digest is that of its groups."""
    pairs = [(group.group_id, group.payload_sha256) for group in plan.groups]
    digest = plan_digest(plan.step, plan.prompts_per_update, pairs)
    if digest != plan.digest:
        raise ValueError(
            f"step {plan.step}: the plan's digest is {plan.digest}, its groups give {digest}"
        )


def entry_of(plan: buffer_pb2.BatchPlan) -> LedgerEntry:
    """The ledger entry of a plan."""
    ids = tuple(group.group_id for group in plan.groups)
    return LedgerEntry(step=plan.step, group_ids=ids, digest=plan.digest)


def entry_to_proto(entry: LedgerEntry) -> buffer_pb2.LedgerEntry:
    return buffer_pb2.LedgerEntry(step=entry.step, group_ids=entry.group_ids, digest=entry.digest)


def entry_from_proto(message: buffer_pb2.LedgerEntry, field: str = "entry") -> LedgerEntry:
    """Refuses an entry without groups or digest, or one that names a group twice."""
    if not message.group_ids or len(set(message.group_ids)) != len(message.group_ids):
        raise ValueError(f"{field}.group_ids: must name every group once")
    if not message.digest:
        raise ValueError(f"{field}.digest: must not be empty")
    return LedgerEntry(step=message.step, group_ids=tuple(message.group_ids), digest=message.digest)
