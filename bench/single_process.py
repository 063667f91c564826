"""The same task without services: vLLM and the same DeepSpeed update in turn, in one program.

    python -m bench.single_process CONFIG --steps N --out FILE     (bench.overhead calls it)

What the platform adds is left out: no Redis, no gRPC, no leases, no ledger, no worker processes,
no overlap. What is measured against it is shared: the engine, the verifier's function, the loss,
the optimiser update, the publication of the policy and its reload. Groups kept beyond the batch
wait for the next step, as in the platform. One row a step is written to FILE.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch.distributed as dist
from prometheus_client import CollectorRegistry

from dapod import algorithm, config, wire
from dapod.config import RunConfig
from dapod.heartbeat import Heartbeat
from dapod.ledger import plan_digest
from dapod.policy_store import PolicyStore
from dapod.types import Group, Outcome, PolicyVersion, Rollout, Verdict
from dapod.v1.buffer_pb2 import BatchPlan, PlannedGroup
from services.buffer.prompts import Cursor, Prompts, load_prompts
from services.reward import verifiers
from services.reward.verifiers import Verifier
from services.rollout import settings
from services.rollout.engine import Output, SamplingRequest
from services.rollout.policies import PolicyReader
from services.rollout.vllm_engine import VllmEngine
from services.trainer.metrics import TrainerMetrics
from services.trainer.phases import Phases
from services.trainer.policy import Policy
from services.trainer.ranks import Ranks
from services.trainer.reference import load_reference
from services.trainer.updates import Updates

LINEAGE = "single"


@dataclass(kw_only=True)
class Sampler:
    """Keeps `groups_in_flight` prompts in the engine until enough informative groups are there."""

    config: RunConfig
    engine: VllmEngine
    prompts: Prompts
    verifier: Verifier
    cursor: Cursor = field(default_factory=lambda: Cursor(epoch=0, position=0))
    surplus: list[Group] = field(default_factory=list)
    tokens: int = 0
    rollouts: int = 0
    correct: int = 0

    def forget(self) -> None:
        """Counts from here on."""
        self.tokens = self.rollouts = self.correct = 0

    async def batch(self) -> list[Group]:
        """The next `prompts_per_step` informative groups, oldest first."""
        wanted = self.config.algorithm.prompts_per_step
        kept, running = self.surplus, set[asyncio.Task[Group]]()
        while len(kept) < wanted or running:
            while len(kept) < wanted and len(running) < self.config.rollout.groups_in_flight:
                running.add(asyncio.create_task(self._group()))
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            kept += [group for task in done if self._informative(group := task.result())]
        self.surplus = kept[wanted:]
        return kept[:wanted]

    async def _group(self) -> Group:
        (group_id,), self.cursor = self.prompts.next_ids(self.cursor, 1)
        prompt = self.prompts.get(group_id)
        sampling = self.config.sampling
        outputs = await self.engine.sample(
            SamplingRequest(
                request_id=group_id,
                prompt_token_ids=prompt.token_ids,
                rollouts=self.config.algorithm.group_size,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_response_tokens=sampling.max_response_tokens,
            )
        )
        judged = tuple(self._judge(output, prompt.answer) for output in outputs)
        return Group(group_id=group_id, prompt_token_ids=prompt.token_ids, rollouts=judged)

    def _judge(self, output: Output, answer: str) -> Rollout:
        correct = bool(self.verifier(output.text, answer).correct)
        outcome = Outcome.CORRECT if correct else Outcome.WRONG
        tokens = len(output.rollout.token_ids)
        penalty = algorithm.overlong_penalty(
            tokens,
            self.config.sampling.max_response_tokens,
            self.config.algorithm.overlong_cache_tokens,
        )
        self.tokens += tokens
        self.rollouts += 1
        self.correct += correct
        reward = algorithm.reward(correct, penalty)
        return replace(
            output.rollout, verdict=Verdict(outcome=outcome, correct=correct, reward=reward)
        )

    def _informative(self, group: Group) -> bool:
        correct = [r.verdict.correct for r in group.rollouts if r.verdict]
        return not self.config.algorithm.dynamic_sampling or algorithm.is_informative(correct)


def plan_of(step: int, groups: Iterable[Group], prompts_per_update: int) -> BatchPlan:
    """What the buffer would have handed out."""
    planned = [
        PlannedGroup(
            group_id=group.group_id,
            policy_number=group.policy.number,
            prompt_tokens=len(group.prompt_token_ids),
            response_tokens=[len(rollout.token_ids) for rollout in group.rollouts],
        )
        for group in groups
    ]
    digest = plan_digest(step, prompts_per_update, [(g.group_id, "") for g in planned])
    return BatchPlan(
        step=step, groups=planned, prompts_per_update=prompts_per_update, digest=digest
    )


async def steps(run: RunConfig, wanted: int, scratch: Path) -> AsyncIterator[dict[str, float]]:
    """Trains `wanted` steps and yields a row after each."""
    updates, policy = make_trainer(run)
    store = PolicyStore(scratch)
    reader = PolicyReader(store, Path(run.model.path))
    engine = VllmEngine(
        lambda directory: settings.engine_arguments(
            run, model=directory, worker_id="single", cpu=settings.is_cpu_build()
        )
    )

    async def publish(number: int) -> None:
        version = PolicyVersion(number=number, lineage=LINEAGE)
        store.publish(version, policy.write)
        await engine.load(await reader.verify(version))
        store.prune(keep=[], newest=2)

    sampler = Sampler(
        config=run,
        engine=engine,
        prompts=load_prompts(run),
        verifier=verifiers.load(run.data.verifier),
    )
    try:
        await publish(0)
        for step in range(wanted):
            began = time.monotonic()
            sampler.forget()
            groups = await sampler.batch()
            sampled = time.monotonic()
            plan = plan_of(step, groups, run.algorithm.prompts_per_update)
            updates.run(plan, updates.cut(plan), {g.group_id: as_received(g) for g in groups})
            trained = time.monotonic()
            await publish(step + 1)
            yield {
                "step": step,
                "accuracy": sampler.correct / sampler.rollouts,
                "tokens_generated": sampler.tokens,
                "seconds_wait": sampled - began,
                "seconds_train": trained - sampled,
                "seconds_publish": time.monotonic() - trained,
                "seconds_total": time.monotonic() - began,
            }
    finally:
        await engine.stop()


def as_received(group: Group) -> Group:
    """With log-probs rounded as the wire rounds them."""
    return wire.group_from_proto(wire.group_to_proto(group))


def make_trainer(run: RunConfig) -> tuple[Updates, Policy]:
    """The trainer's own policy and updates, as its one rank wires them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone | {"MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"})
    dist.init_process_group("gloo")
    ranks, metrics = Ranks(), TrainerMetrics(CollectorRegistry())
    policy = Policy(run, ranks)
    updates = Updates(
        config=run,
        policy=policy,
        reference=load_reference(run, ranks),
        ranks=ranks,
        phases=Phases(metrics, Heartbeat(), {}),
        metrics=metrics,
        stop=threading.Event(),
    )
    return updates, policy


async def write_rows(run: RunConfig, wanted: int, out: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch, out.open("w") as stream:
        async for row in steps(run, wanted, Path(scratch)):
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            print(f"  single process: {row}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    run = config.load(given.config, [f"run.seed={given.seed}"])
    asyncio.run(write_rows(run, given.steps, given.out))


if __name__ == "__main__":
    main()
