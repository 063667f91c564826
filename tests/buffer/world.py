"""A run on a virtual clock over a real Valkey: a store, groups to order, and the trainer's part.

Example: `world.resume(0); (lease,) = world.lease("a", 0, 1); world.submit(lease); world.cut(0)`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import redis

from dapod import config as configuration
from dapod import wire
from dapod.config import RunConfig
from dapod.ledger import LedgerEntry
from dapod.types import (
    Disposition,
    FinishReason,
    Group,
    Outcome,
    PolicySpan,
    PolicyVersion,
    Rollout,
    Verdict,
)
from dapod.v1 import types_pb2
from services.buffer.problems import Problems
from services.buffer.prompts import Prompt, Prompts
from services.buffer.records import (
    Committed,
    Counts,
    LeaseId,
    NoPlan,
    Plan,
    Resumed,
    Submission,
    WorkerSeen,
)
from services.buffer.scripts import Scripts
from services.buffer.store import Store
from services.buffer.submission import disposition, is_kept

RUN_ID = "test"


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def make_config(**sections: dict[str, object]) -> RunConfig:
    """A small run; each keyword overrides keys of a section."""
    raw: dict[str, dict[str, object]] = {
        "run": {"name": "test", "steps": 1000},
        "model": {"path": "model"},
        "data": {"path": "data.jsonl", "verifier": "integer"},
        "sampling": {"max_prompt_tokens": 8, "max_response_tokens": 4},
        "algorithm": {
            "group_size": 4,
            "prompts_per_step": 2,
            "prompts_per_update": 1,
            "max_staleness": 1,
            "max_leases_per_step": 1000,
        },
        "optimiser": {"learning_rate": 1e-5},
        "trainer": {"tokens_per_micro_batch": 64, "checkpoint_every_steps": 4},
        "rollout": {"groups_in_flight": 4},
        "buffer": {"lease_seconds": 60.0, "queue_prompts": 6},
    }
    for section, keys in sections.items():
        raw[section] = {**raw.get(section, {}), **keys}
    return configuration.parse(raw, "test")


def make_prompts(rows: int = 40) -> Prompts:
    prompts = [
        Prompt(token_ids=np.array([1, 2, row + 3], dtype=np.int32), answer=str(row))
        for row in range(rows)
    ]
    return Prompts(prompts, seed=0, digest=f"{rows} rows")


def verdict(correct: bool | None) -> Verdict:
    if correct is None:
        return Verdict(outcome=Outcome.TIMEOUT, correct=None, reward=None)
    outcome = Outcome.CORRECT if correct else Outcome.WRONG
    return Verdict(outcome=outcome, correct=correct, reward=1.0 if correct else -1.0)


def make_group(
    group_id: str,
    prompt: Prompt,
    policy: PolicyVersion,
    correct: list[bool | None],
    tokens: int = 2,
) -> types_pb2.Group:
    rollouts = tuple(
        Rollout(
            token_ids=np.arange(1, tokens + 1, dtype=np.int32),
            logprobs=np.full(tokens, -0.5, dtype=np.float32),
            finish_reason=FinishReason.STOP,
            policy_spans=(PolicySpan(policy=policy, tokens=tokens),),
            verdict=verdict(one),
        )
        for one in correct
    )
    return wire.group_to_proto(
        Group(group_id=group_id, prompt_token_ids=prompt.token_ids, rollouts=rollouts)
    )


KINDS: dict[str, list[bool | None]] = {
    "kept": [True, False, False, True],
    "all_correct": [True] * 4,
    "all_wrong": [False] * 4,
    "failed": [True, None, None, None],
}


class World:
    """One run. `leases` remembers which policy each lease was granted for."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        config: RunConfig | None = None,
        prompts: Prompts | None = None,
        clock: Clock | None = None,
        scripts: Scripts | None = None,
        problems: Problems | None = None,
    ) -> None:
        self.client = client
        self.clock = clock or Clock()
        self.config = config or make_config()
        self.prompts = prompts or make_prompts()
        self.problems = problems
        self.scripts = scripts or Scripts(
            client=client,
            run_id=RUN_ID,
            config=self.config,
            problems=problems,
            now=self.clock,
        )
        self.store = Store(scripts=self.scripts, prompts=self.prompts, config=self.config)
        self.store.start(self.config.digest())
        self.lineage = "none"
        self.policies: dict[LeaseId, PolicyVersion] = {}
        self.ledger: list[LedgerEntry] = []
        self.refusal = ""

    # What rollouts do.

    def worker(self, name: str, version: int | None) -> WorkerSeen:
        loaded = None if version is None else PolicyVersion(number=version, lineage=self.lineage)
        return WorkerSeen(worker_id=name, loaded=loaded, loading=None)

    def lease(self, name: str, version: int | None, count: int) -> list[LeaseId]:
        worker = self.worker(name, version)
        grant = self.store.lease(worker, count)
        self.refusal = grant.refusal
        for lease in grant.leases:
            assert worker.loaded is not None
            self.policies[lease] = worker.loaded
        return list(grant.leases)

    def submission(self, lease: LeaseId, kind: str = "kept", reward: float = 0.0) -> Submission:
        prompt = self.prompts.get(lease.group_id)
        policy = self.policies[lease]
        payload = make_group(lease.group_id, prompt, policy, KINDS[kind]).SerializeToString()
        judged = [c for c in KINDS[kind] if c is not None]
        became = disposition(KINDS[kind])
        return Submission(
            lease=lease,
            disposition=became,
            keep=is_kept(became, dynamic_sampling=self.config.algorithm.dynamic_sampling),
            policy=policy,
            payload=payload,
            sha256=hashlib.sha256(payload).hexdigest(),
            prompt_tokens=3,
            response_tokens=(2, 2, 2, 2),
            counts={"rollouts": 4, "rollouts_judged": len(judged), "rollouts_correct": sum(judged)},
            reward_sum=reward,
        )

    def submit(self, lease: LeaseId, kind: str = "kept") -> Disposition:
        return self.store.submit(self.submission(lease, kind))

    def sample(self, version: int, count: int, name: str = "a") -> list[str]:
        """Leases and submits `count` informative groups; returns their ids."""
        leases = self.lease(name, version, count)
        assert len(leases) == count, self.refusal
        for lease in leases:
            assert self.submit(lease) is Disposition.KEPT
        return [lease.group_id for lease in leases]

    # What the trainer does.

    def resume(self, step: int, lineage: str = "first") -> Resumed:
        resumed = self.store.resume(PolicyVersion(number=step, lineage=lineage), self.ledger[:step])
        self.lineage = lineage
        del self.ledger[step:]
        return resumed

    def ask(self, step: int) -> Plan | NoPlan:
        return self.store.next_batch(step, self.lineage)

    def cut(self, step: int) -> Plan:
        plan = self.ask(step)
        assert isinstance(plan, Plan), plan.reason
        return plan

    def entry(self, plan: Plan) -> LedgerEntry:
        ids = tuple(group.group_id for group in plan.groups)
        return LedgerEntry(step=plan.step, group_ids=ids, digest=plan.digest)

    def commit(self, plan: Plan) -> Committed:
        entry = self.entry(plan)
        policy = PolicyVersion(number=plan.step + 1, lineage=self.lineage)
        committed = self.store.commit(entry, policy)
        del self.ledger[plan.step :]
        self.ledger.append(entry)
        return committed

    def train(self, step: int) -> Plan:
        """Cuts and commits a step whose groups are ready."""
        plan = self.cut(step)
        self.commit(plan)
        return plan

    def step(self, step: int) -> Plan:
        """Samples, cuts and commits a whole step."""
        self.sample(step, self.config.algorithm.prompts_per_step)
        return self.train(step)

    # What a test looks at.

    def counts(self) -> Counts:
        return self.store.counts()

    def place(self, group_id: str) -> str:
        """The one place the group is in."""
        found = [
            name
            for name in self.counts().groups
            if self.client.zscore(self.key(name.replace("dropped_", "dropped:")), group_id)
            is not None
        ]
        assert len(found) == 1, found
        return found[0]

    def key(self, name: str) -> str:
        return f"dapod:{{{RUN_ID}}}:{name}"

    def conserved(self) -> Counts:
        """Raises unless invariants 1 and 3 hold."""
        counts = self.counts()
        assert counts.conservation_error == 0, counts.faults
        assert counts.totals.get("stale", 0) == 0
        return counts


def snapshot(client: redis.Redis) -> dict[bytes, bytes]:
    """All keys as DUMP gives them."""
    return {key: client.dump(key) for key in client.scan_iter()}


def restore(client: redis.Redis, keys: dict[bytes, bytes]) -> None:
    """Redis as it was when `snapshot` was taken."""
    client.flushall()
    for key, value in keys.items():
        client.restore(key, 0, value)


def repository() -> Path:
    return Path(__file__).parents[2]
