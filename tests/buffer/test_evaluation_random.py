"""Whole runs with evaluations on a virtual clock: pods that are slow, die and come back, a trainer
that crashes. Seeded, so a failure repeats.

A pod does what the worker does: it loads the policy it is told to load once its groups are done,
says what it loads, renews its leases at a third of the lease time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import redis

from dapod.types import PolicyVersion, RunState
from services.buffer.problems import ProblemId
from services.buffer.records import LeaseId, Plan, WorkerSeen
from tests.buffer.evaluating import PROBLEMS, EvaluatedWorld

STEPS, SLOTS, LOAD_SECONDS, TRAIN_SECONDS = 9, 3, 2, 4


@dataclass
class Pod:
    name: str
    slowness: int
    loaded: PolicyVersion | None = None
    loading: PolicyVersion | None = None
    ready_at: float = 0.0
    running: dict[LeaseId, float] = field(default_factory=dict)
    """Lease to the second it is done."""
    renewed_at: float = 0.0

    @property
    def seen(self) -> WorkerSeen:
        return WorkerSeen(worker_id=self.name, loaded=self.loaded, loading=self.loading)


class EvaluatedRun:
    """Trains and evaluates to the end, with trouble on the way."""

    def __init__(self, client: redis.Redis, seed: int, slowness: list[int], trouble: float) -> None:
        self.random = random.Random(seed)
        self.world = EvaluatedWorld(
            client,
            max_share=self.random.choice([0.3, 0.5, 1.0]),
            deadline_seconds=5000.0,
            sections={"run": {"steps": STEPS}, "algorithm": {"max_staleness": seed % 3}},
        )
        self.trouble = trouble
        self.pods = [Pod(f"pod-{i}", slow) for i, slow in enumerate(slowness)]
        self.dead: list[tuple[float, Pod]] = []
        self.step = self.checkpoint = self.lineages = 0
        self.training: tuple[Plan, float] | None = None
        self.finished = False
        self.published: list[PolicyVersion] = []
        self.results: dict[str, int] = {}
        """Group id of a problem to how often its result was counted."""
        self.seconds_evaluate = 0.0
        self.crash()

    def run(self, patience_seconds: int = 60_000) -> None:
        end = self.world.clock() + patience_seconds
        while not self.finished:
            assert self.world.clock() < end, f"stuck at step {self.step}: {self.world.evaluation}"
            self.world.clock.sleep(1)
            for pod in self.pods:
                self.work(pod)
            self.train()
            self.cause_trouble()

    # Pods.

    def work(self, pod: Pod) -> None:
        now, world = self.world.clock(), self.world
        if now - pod.renewed_at > 20:
            pod.renewed_at = now
            for lost in world.store.renew(pod.seen, list(pod.running)):
                pod.running.pop(lost)
            world.store.lease(pod.seen, 0)
        for lease in [one for one, done in pod.running.items() if done <= now]:
            del pod.running[lease]
            self.submit(lease)
        if pod.loading is not None:
            if pod.running or now < pod.ready_at:
                return
            pod.loaded, pod.loading = pod.loading, None
        self.ask(pod)

    def ask(self, pod: Pod) -> None:
        free = SLOTS - len(pod.running) if pod.loaded else 0
        grant = self.world.store.lease(pod.seen, free)
        for lease in grant.leases:
            assert pod.loaded is not None
            problem = ProblemId.parse(lease.group_id)
            assert problem is None or problem.policy == pod.loaded, "another policy than the pinned"
            self.world.policies[lease] = pod.loaded
            pod.running[lease] = self.world.clock() + self.random.uniform(1, 3) * pod.slowness
        if grant.policy != pod.loaded and grant.state is not RunState.FINISHED:
            assert grant.policy in self.published, f"{grant.policy} was pruned"
            pod.loading, pod.ready_at = grant.policy, self.world.clock() + LOAD_SECONDS
            self.world.store.lease(pod.seen, 0)

    def submit(self, lease: LeaseId) -> None:
        if ProblemId.parse(lease.group_id) is None:
            self.world.submit(lease, self.random.choice(["kept", "kept", "all_wrong", "failed"]))
        elif self.world.submit_problem(lease) == "evaluated":
            self.results[lease.group_id] = self.results.get(lease.group_id, 0) + 1

    # The trainer.

    def train(self) -> None:
        self.world.fetch()
        if self.step == STEPS:
            self.finished = self.world.ask_for_results().open == 0
        elif self.training is None:
            found = self.world.ask(self.step)
            if isinstance(found, Plan):
                self.training = found, self.world.clock() + TRAIN_SECONDS
        elif self.training[1] <= self.world.clock():
            self.commit(self.training[0])

    def commit(self, plan: Plan) -> None:
        self.step, self.training = plan.step + 1, None
        self.published.append(PolicyVersion(number=self.step, lineage=self.world.lineage))
        committed = self.world.commit(plan)
        self.seconds_evaluate += committed.stats["seconds_evaluate"]
        used = {one for seen in committed.workers for one in (seen.loaded, seen.loading)}
        used.update(committed.pinned)
        old = self.published[:-2]
        self.published = [one for one in old if one in used] + self.published[-2:]
        if self.step % 4 == 0:
            self.checkpoint = self.step
            self.world.store.checkpointed(self.step)

    def crash(self) -> None:
        self.lineages += 1
        self.step, self.training = self.checkpoint, None
        self.published.append(PolicyVersion(number=self.step, lineage=f"l{self.lineages}"))
        self.world.restart(self.step, f"l{self.lineages}")

    # Trouble.

    def cause_trouble(self) -> None:
        now = self.world.clock()
        for back_at, pod in self.dead:
            if back_at <= now:
                self.pods.append(Pod(pod.name, pod.slowness))
        self.dead = [(back_at, pod) for back_at, pod in self.dead if back_at > now]
        if self.pods and self.random.random() < self.trouble:
            pod = self.pods.pop(self.random.randrange(len(self.pods)))
            if self.random.random() < 0.5:
                self.world.store.give_back(list(pod.running))
            self.dead.append((now + self.random.choice([5, 100, 300]), pod))
        if self.random.random() < self.trouble / 2:
            self.crash()

    def check(self) -> None:
        counts = self.world.conserved()
        assert counts.evaluation.error == 0 and counts.groups["trained"] == 2 * STEPS
        assert all(times == 1 for times in self.results.values()), "a result was counted twice"
        numbers = [one.policy.number for one in self.world.fetched]
        assert sorted(numbers) == [0, 2, 4, 6, 8, STEPS], "each version due ends exactly once"
        for one in self.world.fetched:
            whole = len(one.results) == PROBLEMS
            assert whole or "fell due before its turn came" in one.dropped_because
        assert numbers[-1] == STEPS and not self.world.fetched[-1].dropped_because


@pytest.mark.parametrize(
    "slowness", [[1], [1, 1, 2, 20], [20, 1]], ids=["one pod", "four pods", "a slow one first"]
)
def test_a_run_without_trouble_evaluates_every_version_that_is_due(
    client: redis.Redis, slowness: list[int]
) -> None:
    run = EvaluatedRun(client, 1, slowness, trouble=0.0)
    run.run()
    run.check()
    assert run.seconds_evaluate > 0
    assert "leases_expired" not in run.world.counts().totals


@pytest.mark.parametrize("seed", range(8))
def test_whatever_dies_each_version_is_evaluated_once_and_nothing_is_lost(
    client: redis.Redis, seed: int
) -> None:
    slowness = [1, 2, 20] if seed % 2 else [1]
    run = EvaluatedRun(client, seed, slowness, trouble=0.03)
    run.run()
    run.check()
    assert run.lineages > 1, "the seeds are chosen so that the trainer crashes"
