"""Random runs: lease, submit, expire, return, cut, commit, checkpoint, crash, lose Redis.

The invariants are checked after each action. Seeded, so a failure repeats. The model is small: what
the trainer knows (its ledger and checkpoint).
"""

import random

import pytest
import redis

from dapod.types import Disposition
from services.buffer.records import LeaseId, Plan
from services.buffer.store import Refused, UnknownLease
from tests.buffer.world import World, make_config, make_prompts, restore, snapshot

ACTIONS = 300


class RandomRun:
    """One run; each method is an action that may do nothing."""

    def __init__(self, client: redis.Redis, seed: int) -> None:
        self.random = random.Random(seed)
        self.max_staleness = self.random.choice([0, 1, 1, 2, 3])
        algorithm = {
            "max_staleness": self.max_staleness,
            "prompts_per_step": 2,
            "dynamic_sampling": self.random.random() < 0.7,
        }
        config = make_config(algorithm=algorithm, buffer={"queue_prompts": 5})
        self.world = World(client, config=config, prompts=make_prompts(300))
        self.lineages = 0
        self.lost = False
        self.step = self.checkpoint = 0
        self.plan: Plan | None = None
        self.open: list[LeaseId] = []
        self.digests: dict[int, str] = {}
        self.saved: tuple[int, dict[bytes, bytes]] | None = None
        self.crash()

    def lease(self) -> None:
        version = max(0, self.step - self.random.choice([0, 0, 0, 1, 2]))
        self.open += self.world.lease("a", version, self.random.randint(1, 4))

    def submit(self) -> None:
        if self.open:
            lease = self.random.choice(self.open)
            kind = self.random.choice(["kept", "kept", "all_correct", "all_wrong", "failed"])
            try:
                first = self.world.submit(lease, kind)
            except (UnknownLease, ValueError):
                assert self.lost, "only a Redis that forgot may not know a lease"
                self.open.remove(lease)
                return
            if first is not Disposition.EXPIRED:
                self.open.remove(lease)
                again = self.world.submit(lease, kind)
                assert again is first or again is Disposition.DUPLICATE

    def give_back(self) -> None:
        if self.open:
            self.world.store.give_back([self.random.choice(self.open)])

    def expire(self) -> None:
        self.world.clock.sleep(self.random.choice([20, 61]))

    def train(self) -> None:
        try:
            found = self.world.ask(self.step)
        except Refused:
            assert self.lost, "only a Redis that forgot the resume may refuse"
            return self.crash()
        if isinstance(found, Plan):
            self.check(found)
            assert self.world.cut(self.step).digest == found.digest
            self.plan = found

    def check(self, plan: Plan) -> None:
        if plan.step in self.digests:
            assert plan.digest == self.digests[plan.step], "not handed out verbatim"
        if plan.new:
            assert max(plan.step - g.policy_number for g in plan.groups) <= self.max_staleness
        trained = {id_ for entry in self.world.ledger[: plan.step] for id_ in entry.group_ids}
        assert not trained & {group.group_id for group in plan.groups}, "trained twice"
        self.digests[plan.step] = plan.digest

    def commit(self) -> None:
        if self.plan:
            try:
                self.world.commit(self.plan)
            except Refused:
                assert self.lost, "only a Redis that forgot the resume may refuse"
                return self.crash()
            self.world.commit(self.plan)
            self.step += 1
            self.plan = self.saved = None

    def save(self) -> None:
        self.checkpoint = self.step
        self.world.store.checkpointed(self.step)
        self.saved = None

    def crash(self) -> None:
        """The trainer starts again from its checkpoint."""
        self.lineages += 1
        self.plan = None
        resumed = self.world.resume(self.checkpoint, f"l{self.lineages}")
        assert self.lost or not resumed.dissolved_steps
        for step in resumed.dissolved_steps:
            self.digests.pop(step, None)
        self.step = self.checkpoint

    def remember(self) -> None:
        if self.plan is None:
            self.saved = self.step, snapshot(self.world.client)

    def lose(self) -> None:
        """Redis goes back to before the NextBatch of the step in training."""
        if self.saved and self.saved[0] == self.step:
            restore(self.world.client, self.saved[1])
            self.lost = True
            # What was cut from here on has no ledger any more.
            self.digests = {s: d for s, d in self.digests.items() if s < self.step}

    def go_on(self) -> None:
        """Whatever happened, a run with one good worker trains the next step."""
        self.world.clock.sleep(61)
        self.open.clear()
        self.crash()
        goal = self.step + 3
        for _ in range(60):
            self.open += self.world.lease("a", self.step, 4)
            while self.open:
                self.world.submit(self.open.pop())
            self.train()
            self.commit()
            if self.step == goal:
                return
        raise AssertionError(f"stuck at step {self.step}: {self.world.ask(self.step)}")

    def act(self) -> str:
        names = ["lease", "submit", "give_back", "expire", "train", "commit", "save", "crash"]
        names += ["remember", "lose"]
        (name,) = self.random.choices(names, [12, 24, 1, 1, 8, 6, 1, 1, 2, 1])
        getattr(self, name)()
        return name


@pytest.mark.parametrize("seed", range(12))
def test_the_invariants_hold_whatever_happens(client: redis.Redis, seed: int) -> None:
    run = RandomRun(client, seed)
    done: list[str] = []
    for _ in range(ACTIONS):
        done.append(run.act())
        counts = run.world.counts()
        assert counts.conservation_error == 0, (done[-8:], counts.faults)
        assert counts.totals.get("stale", 0) == 0, done[-8:]
    run.go_on()
    run.world.conserved()
