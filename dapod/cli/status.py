"""The buffer's counts, asked at the end: has the run ended, is every group accounted for?"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from dapod import rpc, wire
from dapod.types import RunState
from dapod.v1 import buffer_pb2, buffer_pb2_grpc, types_pb2

_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What GetStatus said."""

    finished: bool
    end_reason: str = ""
    """Why it finished; empty while it runs."""
    conservation_error: int = 0
    groups: Mapping[str, int] = field(default_factory=dict)
    """How many groups are where."""


def ask(address: str, run_id: str, config_digest: str) -> RunStatus | None:
    """None when the buffer does not answer now."""
    run = types_pb2.RunIdentity(run_id=run_id, config_digest=config_digest)
    with rpc.channel(address) as channel:
        stub = buffer_pb2_grpc.BufferServiceStub(channel)
        try:
            reply = stub.GetStatus(buffer_pb2.GetStatusRequest(run=run), timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError:
            return None
    return RunStatus(
        finished=wire.state_from_proto(reply.state) is RunState.FINISHED,
        end_reason=reply.end_reason,
        conservation_error=reply.conservation_error,
        groups=_groups(reply),
    )


def _groups(reply: buffer_pb2.GetStatusResponse) -> dict[str, int]:
    return {
        "queued": reply.groups_queued,
        "leased": reply.groups_leased,
        "ready": reply.groups_ready,
        "batched": reply.groups_batched,
        "trained": reply.groups_trained,
        "dropped_all_correct": reply.groups_dropped_all_correct,
        "dropped_all_wrong": reply.groups_dropped_all_wrong,
        "dropped_failed": reply.groups_dropped_failed,
        "stale_ever": reply.groups_stale_ever,
    }
