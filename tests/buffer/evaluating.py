"""A run that evaluates, on a virtual clock over a real Valkey: what `World` has, and evaluations.

Example: `world.resume(0); (lease,) = world.problems_of(world.ask_for_work("a", 0, 1))`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import redis

from dapod.types import Disposition, PolicyVersion
from dapod.v1 import buffer_pb2
from services.buffer.problems import ProblemId, Problems
from services.buffer.records import (
    Committed,
    EndedEvaluation,
    EvaluatedSubmission,
    EvaluationCounts,
    Evaluations,
    Grant,
    LeaseId,
    Plan,
)
from tests.buffer.world import Clock, World, make_config, make_prompts

PROBLEMS = 5


def result_of(row: int) -> buffer_pb2.EvaluatedProblem:
    return buffer_pb2.EvaluatedProblem(problem=row, response_tokens=7)


RESULT_BYTES = result_of(PROBLEMS - 1).ByteSize()


def make_problems(count: int = PROBLEMS, digest: str = "five") -> Problems:
    prompts = make_prompts(count)
    return Problems([prompts.get(f"0-{row}") for row in range(count)], digest=digest)


def evaluation(**keys: object) -> dict[str, object]:
    data = {"path": "problems.jsonl", "verifier": "integer"}
    return {"every_steps": 2, "data": data, "samples": 3, **keys}


class EvaluatedWorld(World):
    """Two groups a step, five problems, every second version evaluated."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        problems: Problems | None = None,
        sections: dict[str, dict[str, object]] | None = None,
        clock: Clock | None = None,
        **keys: object,
    ) -> None:
        config = make_config(**(sections or {}), evaluation=evaluation(**keys))
        super().__init__(client, config=config, problems=problems or make_problems(), clock=clock)
        self.commit_stats: Mapping[str, float] = {}
        """Of the last commit."""
        self.fetched: list[EndedEvaluation] = []
        """By the trainer, in order; of versions that were not superseded."""

    def ask_for_work(
        self, name: str, version: int | None, count: int, lineage: str | None = None
    ) -> Grant:
        """As `lease`, with all that the buffer answers."""
        worker = self.worker(name, version)
        if worker.loaded is not None and lineage is not None:
            loaded = PolicyVersion(number=worker.loaded.number, lineage=lineage)
            worker = type(worker)(worker_id=name, loaded=loaded, loading=None)
        grant = self.store.lease(worker, count)
        for lease in grant.leases:
            assert worker.loaded is not None
            self.policies[lease] = worker.loaded
        return grant

    def lease_problems(self, name: str, version: int, count: int) -> list[LeaseId]:
        """Leases of the evaluation alone."""
        return problems_in(self.ask_for_work(name, version, count))

    def submit_problem(self, lease: LeaseId, policy: PolicyVersion | None = None) -> Disposition:
        problem = ProblemId.parse(lease.group_id)
        assert problem is not None
        result = result_of(problem.row)
        return self.store.submit_evaluated(
            EvaluatedSubmission(
                lease=lease,
                policy=policy or self.policies[lease],
                payload=result.SerializeToString(),
            )
        )

    def finish(self, name: str, version: int, count: int = PROBLEMS) -> None:
        """One pod evaluates `count` problems."""
        for _ in range(count):
            (lease,) = self.lease_problems(name, version, 1)
            assert self.submit_problem(lease) is Disposition.EVALUATED

    def sample_as(self, name: str, version: int, count: int) -> None:
        """A pod without a seat samples for training; one that has it would get problems."""
        left = count
        while left:
            grant = self.ask_for_work(name, version, left)
            assert groups_in(grant), grant.refusal
            for lease in groups_in(grant):
                self.submit(lease)
                left -= 1

    def commit(self, plan: Plan) -> Committed:
        committed = super().commit(plan)
        self.commit_stats = committed.stats
        return committed

    def ask_for_results(self, *known: PolicyVersion, first: int = 0) -> Evaluations:
        """A page, of two results."""
        return self.store.evaluations(known, first, 2 * RESULT_BYTES)

    def fetch(self) -> list[EndedEvaluation]:
        """What the trainer had not, as it asks for it, page by page; remembers all."""
        news = []
        while True:
            known = [one.policy for one in self.fetched]
            ended = page = self.ask_for_results(*known).ended
            if ended is None:
                return news
            while page is not None and page.next_problem is not None:
                page = self.ask_for_results(*known, first=page.next_problem).ended
                assert page is not None and page.policy == ended.policy
                ended = replace(ended, results=ended.results + page.results)
            news.append(ended)
            self.fetched.append(ended)

    def restart(self, step: int, lineage: str) -> None:
        """The trainer starts again: its file is cut back, and it says what it still holds."""
        self.fetched = [one for one in self.fetched if one.policy.number <= step]
        policy = PolicyVersion(number=step, lineage=lineage)
        known = [one.policy for one in self.fetched]
        self.store.resume(policy, self.ledger[:step], known)
        self.lineage = lineage
        del self.ledger[step:]

    @property
    def evaluation(self) -> EvaluationCounts:
        """Raises unless every problem is in one place."""
        counts = self.conserved().evaluation
        assert counts.error == 0
        return counts


def problems_in(grant: Grant) -> list[LeaseId]:
    return [lease for lease in grant.leases if ProblemId.parse(lease.group_id) is not None]


def groups_in(grant: Grant) -> list[LeaseId]:
    return [lease for lease in grant.leases if ProblemId.parse(lease.group_id) is None]


def rows(ended: EndedEvaluation) -> list[int]:
    """The problems that have a result."""
    return [buffer_pb2.EvaluatedProblem.FromString(one).problem for one in ended.results]
