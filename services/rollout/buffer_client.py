"""The buffer as a rollout sees it: typed values, every call patient and with a deadline.

Waits for ever for a buffer that is away (visibly, and an alert sees it): a rollout has nothing
else to do, and a lease it could not renew is found lost by the next renewal.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc

from dapod import wire
from dapod.config import ConfigError
from dapod.rpc import Patience, status
from dapod.types import Disposition, Group, PolicyVersion, RunState
from dapod.v1 import buffer_pb2, buffer_pb2_grpc, types_pb2
from services.rollout.engine import SamplingRequest

CALL_SECONDS = 20.0
SUBMIT_SECONDS = 60.0
RETURN_SECONDS = 3.0
"""A pod that is told to stop has little time; leases it cannot return expire."""

Reply = TypeVar("Reply")


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What a pod says of its policies in every call."""

    loaded: PolicyVersion | None
    loading: PolicyVersion | None = None


@dataclass(frozen=True, kw_only=True)
class LeasedPrompt:
    """One prompt to work on."""

    lease_id: str
    request: SamplingRequest
    """Its request id is the group id."""
    answer: str
    verifier: str

    @property
    def group_id(self) -> str:
        return self.request.request_id


@dataclass(frozen=True, kw_only=True)
class Grant:
    """The buffer's answer to a pod that asks for work."""

    prompts: tuple[LeasedPrompt, ...]
    policy: PolicyVersion | None
    """The one to load."""
    state: RunState
    refusal: str
    lease_seconds: float
    retry_seconds: float


class BufferClient:
    """Speaks for one pod of one run. `waiting` is told what is being waited for.

    `holding` stands in every call; whoever loads policies keeps it right.
    """

    def __init__(
        self,
        *,
        stub: buffer_pb2_grpc.BufferServiceAsyncStub,
        run: types_pb2.RunIdentity,
        worker_id: str,
        waiting: Callable[[str], None],
    ) -> None:
        self._stub = stub
        self._run = run
        self._worker_id = worker_id
        self._waiting = waiting
        self.holding = Holding(loaded=None)

    async def lease(self, max_prompts: int) -> Grant:
        """Asks for work; with 0 prompts, only which policy to load."""
        request = buffer_pb2.LeasePromptsRequest(
            run=self._run, worker=self._worker(), max_prompts=max_prompts
        )
        return _grant(await self._call(self._stub.LeasePrompts, request, CALL_SECONDS))

    async def renew(self, lease_ids: Collection[str]) -> set[str]:
        """Renews leases, and returns the lost ones; with none it is a heartbeat."""
        request = buffer_pb2.RenewLeasesRequest(
            run=self._run, worker=self._worker(), lease_ids=lease_ids
        )
        reply = await self._call(self._stub.RenewLeases, request, CALL_SECONDS)
        return set(reply.lost_lease_ids)

    async def submit(self, lease_id: str, group: Group) -> Disposition:
        """Closes a lease. A full buffer is waited for while the caller renews the lease."""
        request = buffer_pb2.SubmitGroupRequest(
            run=self._run,
            worker=self._worker(),
            lease_id=lease_id,
            group=wire.group_to_proto(group),
        )
        reply = await self._call(self._stub.SubmitGroup, request, SUBMIT_SECONDS)
        return wire.disposition_from_proto(reply.disposition)

    async def give_back(
        self, lease_ids: Collection[str], reason: str, *, in_vain: bool = False
    ) -> int:
        """Returns leases with one attempt; raises `grpc.RpcError` when it fails.

        `in_vain` says that the groups themselves could not be finished.
        """
        request = buffer_pb2.ReturnLeasesRequest(
            run=self._run,
            worker=self._worker(),
            lease_ids=lease_ids,
            reason=reason,
            in_vain=in_vain,
        )
        reply = await self._stub.ReturnLeases(request, timeout=RETURN_SECONDS)
        return reply.returned

    async def _call(
        self, method: Callable[..., Awaitable[Reply]], request: Any, seconds: float
    ) -> Reply:
        patience = Patience(
            who="buffer",
            waiting=self._waiting,
            timeout_seconds=seconds,
            give_up_seconds=math.inf,
        )
        try:
            return await patience.acall(method, request)
        except grpc.RpcError as error:
            _refuse_another_run(error)

    def _worker(self) -> buffer_pb2.Worker:
        holding = self.holding
        return buffer_pb2.Worker(
            worker_id=self._worker_id,
            loaded=_optional(holding.loaded),
            loading=_optional(holding.loading),
        )


def _optional(policy: PolicyVersion | None) -> types_pb2.PolicyVersion | None:
    return None if policy is None else wire.policy_to_proto(policy)


def _refuse_another_run(error: grpc.RpcError) -> NoReturn:
    """The buffer serves another run or config: nothing gets better by trying again."""
    if status(error) is grpc.StatusCode.FAILED_PRECONDITION:
        details = error.details()
        raise ConfigError(f"the buffer refuses this rollout: {details}") from error
    raise error


def _grant(reply: buffer_pb2.LeasePromptsResponse) -> Grant:
    return Grant(
        prompts=tuple(_leased(lease) for lease in reply.leases),
        policy=wire.policy_from_proto(reply.policy) if reply.HasField("policy") else None,
        state=wire.state_from_proto(reply.state),
        refusal=reply.refusal,
        lease_seconds=reply.lease_seconds,
        retry_seconds=reply.retry_seconds,
    )


def _leased(lease: buffer_pb2.Lease) -> LeasedPrompt:
    if lease.purpose not in (buffer_pb2.PURPOSE_TRAIN, buffer_pb2.PURPOSE_EVALUATE):
        raise ValueError(
            f"lease.purpose: {lease.purpose} is not known here; group={lease.group_id}"
        )
    sampling = lease.sampling
    return LeasedPrompt(
        lease_id=lease.lease_id,
        request=SamplingRequest(
            request_id=lease.group_id,
            prompt_token_ids=wire.ids_from_bytes(lease.prompt_token_ids, "prompt_token_ids"),
            rollouts=sampling.rollouts,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_response_tokens=sampling.max_response_tokens,
        ),
        answer=lease.answer,
        verifier=lease.verifier,
    )
