"""The trainer's loop, on one screen. Every rank runs it, on one node or several; rank 0 decides,
speaks to the buffer and to disk.

    start:  checkpoint c or the base model ──publish version c, new lineage──► Resume(c, ledger)
    step s: NextBatch ──plan──► all ranks fetch their share ──updates──► publish s+1 ──► CommitStep
            ──► prune old policies ──► a row of steps.jsonl ──► sometimes a checkpoint, Checkpointed
    meanwhile, and at the end until none is open: evaluations that ended ──► evaluations.jsonl

Killed anywhere, it starts from the last checkpoint and is handed the same batches again, verbatim.
So SIGTERM finishes nothing: it leaves at the next micro-batch or poll.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass

from dapod.config import RunConfig
from dapod.health import Health
from dapod.ledger import LedgerEntry, entry_of
from dapod.policy_store import PolicyStore
from dapod.types import PolicyVersion, RunState
from dapod.v1.buffer_pb2 import BatchPlan, NextBatchResponse, SamplingStats
from dapod.wire import policy_from_proto, state_from_proto
from services.trainer.checkpoint import Checkpoint, CheckpointStore, check_resumable, sync_tree
from services.trainer.evaluations import Evaluations
from services.trainer.metrics import TrainerMetrics
from services.trainer.phases import Phases
from services.trainer.policy import Policy
from services.trainer.ranks import Ranks
from services.trainer.source import Source
from services.trainer.steps import StepLog, StepSeconds, TrainedStep, row
from services.trainer.updates import Updates

log = logging.getLogger("dapod.trainer")

NEWEST_POLICIES = 2
"""Kept besides those in use: the one to load, and the one some pod is about to leave."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """`Trainer(...).run()` trains to the end of the run."""

    config: RunConfig
    ranks: Ranks
    policy: Policy
    updates: Updates
    source: Source
    policies: PolicyStore
    checkpoints: CheckpointStore
    steps: StepLog
    evaluations: Evaluations
    phases: Phases
    metrics: TrainerMetrics
    health: Health

    def run(self) -> None:
        """Returns when all steps are trained or the buffer says that the run is finished."""
        lineage = self.ranks.broadcast(self._new_lineage()).decode()
        ledger = self._start(lineage)
        saved = len(ledger)
        while len(ledger) < self.config.run.steps:
            plan = self._next_plan(len(ledger))
            if plan is None:
                break
            trained = self._train(plan)
            ledger.append(entry_of(plan))
            published = self._publish(len(ledger), lineage)
            sampled = self._commit(ledger[-1], published)
            self._record(plan, sampled, trained)
            if len(ledger) % self.config.trainer.checkpoint_every_steps == 0:
                saved = self._checkpoint(ledger, lineage)
        if saved < len(ledger):
            self._checkpoint(ledger, lineage)
        self._await_evaluations()
        self.health.waiting(f"finished after {len(ledger)} steps")

    def _new_lineage(self) -> bytes | None:
        return secrets.token_hex(4).encode() if self.ranks.leads else None

    def _start(self, lineage: str) -> list[LedgerEntry]:
        """Loads where the run stands, publishes it under a new lineage, says so to the buffer."""
        checkpoint = self._latest()
        ledger = list(checkpoint.ledger) if checkpoint else []
        if checkpoint:
            check_resumable(checkpoint, self.config, self.ranks.size)
            self.health.waiting(f"loading the checkpoint of step {checkpoint.step}")
            self.policy.load(self.checkpoints.path(checkpoint.step))
        if self.ranks.leads:
            self.policies.sweep()
            self.steps.cut_back(len(ledger))
            self.evaluations.cut_back(len(ledger))
        published = self._publish(len(ledger), lineage)
        if self.ranks.leads:
            self.source.resume(published, ledger, self.evaluations.known)
            log.info("resumed at step %d with policy %s", len(ledger), published)
        self.phases.restart()
        return ledger

    def _latest(self) -> Checkpoint | None:
        """The newest checkpoint as rank 0 sees it; another node may see the directory of before."""
        said = b""
        if self.ranks.leads and (latest := self.checkpoints.latest()):
            said = str(latest.step).encode()
        said = self.ranks.broadcast(said)
        return self.checkpoints.await_finished(int(said), self.health.waiting) if said else None

    def _next_plan(self, step: int) -> BatchPlan | None:
        """Waits for the batch of `step`; None when the run is finished. Rank 0 asks, all hear."""
        self.metrics.step.set(step)
        while True:
            with self.phases("wait"):
                asked = self.source.poll(step).SerializeToString() if self.ranks.leads else None
                reply = NextBatchResponse.FromString(self.ranks.broadcast(asked))
                self.source.heard(step, reply)
                self._collect()
            if reply.HasField("plan"):
                return reply.plan
            if state_from_proto(reply.state) is RunState.FINISHED:
                log.info("the run is finished: %s", reply.waiting_for)
                return None

    def _train(self, plan: BatchPlan) -> TrainedStep:
        """Each rank fetches the groups it has rows of, and all train."""
        cut = self.updates.cut(plan)
        own = {row.group_id for update in cut for rows in update for row in rows}
        with self.phases("fetch"):
            planned = [group for group in plan.groups if group.group_id in own]
            groups = {group.group_id: group for group in self.source.fetch(planned)}
        return self.updates.run(plan, cut, groups)

    def _publish(self, number: int, lineage: str) -> PolicyVersion:
        """Makes the weights visible as version `number`; all ranks give their part of them."""
        published = PolicyVersion(number=number, lineage=lineage)
        self.health.doing(f"publishing policy {published}")
        with self.phases("publish"), self.metrics.publish_seconds.time():
            if self.ranks.leads:
                self.policies.publish(published, self.policy.write)
            else:
                self.policy.write(None)
        self.metrics.policy_version.set(number)
        return published

    def _commit(self, entry: LedgerEntry, published: PolicyVersion) -> SamplingStats:
        """Closes the step and prunes; returns what was sampled since the commit before."""
        if not self.ranks.leads:
            return SamplingStats()
        with self.phases("commit"):
            reply = self.source.commit(entry, published)
            in_use = [policy_from_proto(used) for used in reply.policies_in_use]
            for policy in self.policies.prune(keep=in_use, newest=NEWEST_POLICIES):
                log.info("pruned policy %s", policy)
        return reply.sampling

    def _collect(self) -> str:
        """Writes down the evaluations that have ended; says what is being evaluated, or nothing."""
        return self.evaluations.collect() if self.ranks.leads else ""

    def _await_evaluations(self) -> None:
        """The buffer ends each one at its deadline, so this ends. The ranks leave together."""
        while True:
            with self.phases("wait"):
                left = self._collect()
                if not self.ranks.any(bool(left)):
                    return
                if left:
                    self.health.waiting(f"waiting for the last evaluation: {left}")
                self.source.pause()

    def _record(self, plan: BatchPlan, sampled: SamplingStats, trained: TrainedStep) -> None:
        """The step's row, on disk before any checkpoint that contains the step."""
        seconds = StepSeconds(
            seconds_wait=self.phases.seconds("wait"),
            seconds_train=self.phases.seconds("fetch", "old_logprobs", "update"),
            seconds_publish=self.phases.seconds("publish"),
            seconds_evaluate=sampled.seconds_evaluate,
            seconds_total=self.phases.total,
        )
        self.phases.restart()
        if not self.ranks.leads:
            return
        values = row(plan, sampled, trained, seconds)
        self.steps.append(values)
        self.metrics.show(values, trained.rollouts_dropped)
        log.info(
            "step %d: accuracy %s, loss %.4f, %d tokens in %.1f s (waited %.1f s)",
            plan.step,
            "-" if values["accuracy"] is None else f"{values['accuracy']:.2f}",
            trained.loss,
            trained.tokens_trained,
            seconds.seconds_total,
            seconds.seconds_wait,
        )

    def _checkpoint(self, ledger: list[LedgerEntry], lineage: str) -> int:
        """Saves after `len(ledger)` steps, which can then never be handed out again."""
        step = len(ledger)
        self.health.doing(f"saving the checkpoint of step {step}")
        with self.phases("checkpoint"):
            if self.ranks.leads:
                self.checkpoints.begin(step)
            self.ranks.barrier()
            self.checkpoints.await_begun(step, self.health.waiting)
            self.policy.save(self.checkpoints.beside(step))
            sync_tree(self.checkpoints.beside(step))
            self.ranks.barrier()
            if self.ranks.leads:
                self.checkpoints.finish(self._described(ledger, lineage))
                self.source.checkpointed(step)
        return step

    def _described(self, ledger: list[LedgerEntry], lineage: str) -> Checkpoint:
        return Checkpoint(
            step=len(ledger),
            ranks=self.ranks.size,
            zero_stage=self.config.trainer.zero_stage,
            config_digest=self.config.digest(),
            lineage=lineage,
            ledger=tuple(ledger),
        )
