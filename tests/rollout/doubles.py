"""Small stand-ins for what a rollout pod works with: an engine, a buffer and a reward service.

The engine double keeps vLLM's promises (one policy at a time, no sampling while it loads) and
breaks a test that breaks them. Buffer and reward are real gRPC servers whose answers a test sets.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import grpc
import numpy as np

from dapod import wire
from dapod.policy_store import PolicyStore
from dapod.types import (
    Disposition,
    FinishReason,
    Outcome,
    PolicySpan,
    PolicyVersion,
    Rollout,
    RunState,
    Verdict,
)
from dapod.v1 import buffer_pb2, buffer_pb2_grpc, reward_pb2, reward_pb2_grpc, rollout_pb2
from services.rollout.engine import EngineFailed, EngineNotReady, Output, SamplingRequest
from services.rollout.policies import VerifiedPolicy

V0 = PolicyVersion(number=0, lineage="aaa")
V1 = PolicyVersion(number=1, lineage="aaa")
V1_AGAIN = PolicyVersion(number=1, lineage="bbb")


def write_model(
    directory: Path, tensors: Mapping[str, tuple[int, ...]], *, tied: bool = True
) -> None:
    """A model directory with bf16 tensors of these shapes."""
    header, data = {}, b""
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + size],
        }
        data += bytes(size)
    text = json.dumps(header).encode()
    directory.mkdir(exist_ok=True)
    file = directory / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    (directory / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))


SHAPES = {"model.embed_tokens.weight": (4, 2), "model.norm.weight": (2,)}


def publish(
    store: PolicyStore, policy: PolicyVersion, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    store.publish(policy, lambda directory: write_model(directory, shapes))


class EngineDouble:
    """Answers every request with two tokens, once `go` is set."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.go = asyncio.Event()
        self.go.set()
        self.fail_load = False
        self.dead = False
        self.sampling = 0
        self.requests: dict[str, SamplingRequest] = {}
        self._loaded: PolicyVersion | None = None
        self._ready = False

    @property
    def loaded(self) -> PolicyVersion | None:
        return self._loaded

    @property
    def ready(self) -> bool:
        return self._ready

    def check(self) -> None:
        if self.dead:
            raise EngineFailed("the engine double is dead")

    async def load(self, verified: VerifiedPolicy) -> None:
        assert self.sampling == 0, "a load began while a group was being sampled"
        self._ready = False
        self.events.append(f"load {verified.policy}")
        await asyncio.sleep(0)
        if self.fail_load:
            self.dead = True
            raise EngineFailed("half a policy")
        self._loaded, self._ready = verified.policy, True

    async def sample(self, request: SamplingRequest) -> tuple[Output, ...]:
        if not self._ready or self._loaded is None:
            raise EngineNotReady("no policy")
        policy = self._loaded
        self.sampling += 1
        self.events.append(f"sample {request.request_id} with {policy}")
        self.requests[request.request_id] = request
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.events.append(f"abort {request.request_id}")
            raise
        finally:
            self.sampling -= 1
        self.check()
        return tuple(_output(policy) for _ in range(request.rollouts))

    async def stop(self) -> None:
        self._ready = False


def _output(policy: PolicyVersion) -> Output:
    rollout = Rollout(
        token_ids=np.array([7, 2], dtype=np.int32),
        logprobs=np.array([-0.5, -0.25], dtype=np.float32),
        finish_reason=FinishReason.STOP,
        policy_spans=(PolicySpan(policy=policy, tokens=2),),
    )
    return Output(rollout=rollout, text="12")


class BufferDouble(buffer_pb2_grpc.BufferServiceServicer):
    """Grants what is in `queue` to a pod that has a policy; a test changes the rest as it likes."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.policy: PolicyVersion | None = V0
        self.state = RunState.RUNNING
        self.refusal = "the queue is empty"
        self.queue: list[str] = []
        self.evaluated: set[str] = set()
        """Those of the queue that are problems of an evaluation."""
        self.lost: set[str] = set()
        self.leased: list[str] = []
        self.renewed: list[str] = []
        self.returned: dict[str, str] = {}
        self.submitted: dict[str, buffer_pb2.SubmitGroupRequest] = {}
        self.submit_errors: list[grpc.StatusCode] = []
        self.lease_error: grpc.StatusCode | None = None
        self.lease_seconds = 30.0
        self.workers: list[buffer_pb2.Worker] = []

    async def LeasePrompts(self, request, context):  # type: ignore[no-untyped-def]
        if self.lease_error is not None:
            await context.abort(self.lease_error, "the run is another one")
        self._hear(request.worker)
        granted = [] if not request.worker.HasField("loaded") else self.queue[: request.max_prompts]
        self.queue = self.queue[len(granted) :]
        self.leased += granted
        return buffer_pb2.LeasePromptsResponse(
            leases=[self._lease(group_id) for group_id in granted],
            policy=None if self.policy is None else wire.policy_to_proto(self.policy),
            state=wire.state_to_proto(self.state),
            refusal="" if len(granted) == request.max_prompts else self.refusal,
            lease_seconds=self.lease_seconds,
            retry_seconds=0.02,
        )

    async def RenewLeases(self, request, context):  # type: ignore[no-untyped-def]
        self._hear(request.worker)
        self.renewed += request.lease_ids
        return buffer_pb2.RenewLeasesResponse(
            lost_lease_ids=[lease for lease in request.lease_ids if lease in self.lost]
        )

    async def ReturnLeases(self, request, context):  # type: ignore[no-untyped-def]
        for lease_id in request.lease_ids:
            self.returned[lease_id] = request.reason
        return buffer_pb2.ReturnLeasesResponse(returned=len(request.lease_ids))

    async def SubmitGroup(self, request, context):  # type: ignore[no-untyped-def]
        if self.submit_errors:
            await context.abort(self.submit_errors.pop(0), "not now")
        self.events.append(f"submit {request.group.group_id}")
        self.submitted[request.group.group_id] = request
        return buffer_pb2.SubmitGroupResponse(
            disposition=wire.disposition_to_proto(
                Disposition.EVALUATED
                if request.group.group_id in self.evaluated
                else Disposition.KEPT
            )
        )

    def _hear(self, worker: buffer_pb2.Worker) -> None:
        self.workers.append(worker)
        if worker.HasField("loading"):
            self.events.append(f"loading {wire.policy_from_proto(worker.loading)}")

    def _lease(self, group_id: str) -> buffer_pb2.Lease:
        return buffer_pb2.Lease(
            lease_id=f"lease-{group_id}",
            group_id=group_id,
            purpose=buffer_pb2.PURPOSE_EVALUATE
            if group_id in self.evaluated
            else buffer_pb2.PURPOSE_TRAIN,
            prompt_token_ids=wire.ids_to_bytes(np.array([1, 5, 9], dtype=np.int32)),
            sampling=rollout_pb2.SamplingParameters(
                temperature=1.0,
                top_p=0.7 if group_id in self.evaluated else 1.0,
                max_response_tokens=16,
                rollouts=1 if group_id in self.evaluated else 2,
            ),
            answer="12",
            verifier="integer",
        )


class RewardDouble(reward_pb2_grpc.RewardServiceServicer):
    """Calls everything correct, or answers with `error`; `go` holds the answer back."""

    def __init__(self) -> None:
        self.error: grpc.StatusCode | None = None
        self.verdict = Verdict(outcome=Outcome.CORRECT, correct=True, reward=1.0, extracted="12")
        self.go = asyncio.Event()
        self.go.set()
        self.asked = 0

    async def Score(self, request, context):  # type: ignore[no-untyped-def]
        self.asked += 1
        if self.error is not None:
            await context.abort(self.error, "no verdict")
        await self.go.wait()
        verdicts = [wire.verdict_to_proto(self.verdict) for _ in request.responses]
        return reward_pb2.ScoreResponse(verdicts=verdicts)
