"""A whole run on a virtual clock: pods of different speed, a trainer, a real store between them.

A pod changes over as the design says: it stops asking, lets its groups finish, then loads.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from services.buffer.records import LeaseId, Plan
from tests.buffer.world import World

STRAGGLER = 20
"""How many times slower one of the pods is."""


@dataclass
class Pod:
    name: str
    slowness: int
    joins: int = 0
    """The step from which on it asks."""
    version: int = 0
    running: dict[LeaseId, float] = field(default_factory=dict)
    """Lease to the second it is done."""
    joined_seconds: float | None = None
    waited_seconds: float | None = None
    """From its first question to its first lease."""


def _four_pods() -> list[Pod]:
    return [Pod("slow", STRAGGLER), Pod("a", 1), Pod("b", 1), Pod("c", 2)]


@dataclass
class Simulation:
    world: World
    seed: int
    informative: float
    """Share of groups that are neither all correct nor all wrong."""
    slots: int = 3
    train_seconds: int = 4
    retry_seconds: float = math.inf
    """How soon all pods ask again when nothing has happened."""
    pods: list[Pod] = field(default_factory=_four_pods)
    plans: list[Plan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.newest = 0
        self.changed = False
        self.training: tuple[Plan, float] | None = None

    def run(self, steps: int, patience_seconds: int = 20_000) -> None:
        """Trains `steps` steps; raises when the run comes to a stop."""
        end = self.world.clock() + patience_seconds
        while len(self.plans) < steps or self.training:
            assert self.world.clock() < end, f"stuck at step {len(self.plans)}"
            for pod in self.pods:
                self._sample(pod)
            self._train()
            self.world.clock.seconds = self._next_event()

    def _next_event(self) -> float:
        ends = [done for pod in self.pods for done in pod.running.values()]
        if self.training:
            ends.append(self.training[1])
        # After a change there may be something for those who asked before it.
        soon, self.changed = self.changed or not ends, False
        now = self.world.clock()
        next_end = now + 0.5 if soon else max(min(ends), now + 0.01)
        return min(next_end, now + self.retry_seconds)

    def _sample(self, pod: Pod) -> None:
        if len(self.plans) < pod.joins:
            return
        for lease in [one for one, done in pod.running.items() if done <= self.world.clock()]:
            del pod.running[lease]
            self.changed = True
            uniform = self.random.choice(["all_correct", "all_wrong", "failed"])
            kept = self.random.random() < self.informative
            self.world.submit(lease, "kept" if kept else uniform)
        if pod.version != self.newest:
            if pod.running:
                return
            pod.version = self.newest
        if len(pod.running) == self.slots:
            return
        if pod.joined_seconds is None:
            pod.joined_seconds = self.world.clock()
        for lease in self.world.lease(pod.name, pod.version, self.slots - len(pod.running)):
            if pod.waited_seconds is None:
                pod.waited_seconds = self.world.clock() - pod.joined_seconds
            seconds = self.random.uniform(1, 3) * pod.slowness
            pod.running[lease] = self.world.clock() + seconds

    def _train(self) -> None:
        if self.training is None:
            found = self.world.ask(len(self.plans))
            if isinstance(found, Plan):
                self.plans.append(found)
                self.training = found, self.world.clock() + self.train_seconds
        elif self.training[1] <= self.world.clock():
            self.world.commit(self.training[0])
            self.newest += 1
            self.changed = True
            self.training = None
