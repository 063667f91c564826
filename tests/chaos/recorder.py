"""Copies every step's plan and payloads while they live, through the buffer's own contract.

    buffer ◄── GetStatus, NextBatch (of a step that is cut already), FetchGroups ── recorder

Only a ledger that exists is asked for, so nothing of the run changes. A step handed out again under
a new lineage is recorded again: the test compares. Calls fail while services are killed; then it
asks again.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from dapod import rpc
from dapod.v1 import buffer_pb2, buffer_pb2_grpc, types_pb2
from tests.e2e.live_run import LiveRun

_PAUSE_SECONDS = 0.2
_CALL_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a run was given to train."""

    plans: dict[int, dict[str, buffer_pb2.BatchPlan]] = field(default_factory=dict)
    """step -> lineage that was handed it -> its plan."""
    payloads: dict[str, bytes] = field(default_factory=dict)
    """Their SHA-256 in hex -> serialised Group."""

    def ledger(self) -> list[buffer_pb2.BatchPlan]:
        """The last plan of every step, in order."""
        return [list(self.plans[step].values())[-1] for step in sorted(self.plans)]


class Recorder:
    """A thread beside the run. `with Recorder(run) as recorder: ...; recorder.recording`"""

    def __init__(self, run: LiveRun) -> None:
        self.recording = Recording()
        self._run = run
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._record, name="recorder", daemon=True)

    def __enter__(self) -> "Recorder":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _record(self) -> None:
        while not self._stop.wait(_PAUSE_SECONDS):
            address = self._run.services().get("buffer", {}).get("grpc")
            if address is None:
                continue
            with rpc.channel(address) as channel:
                self._follow(buffer_pb2_grpc.BufferServiceStub(channel))

    def _follow(self, buffer: buffer_pb2_grpc.BufferServiceStub) -> None:
        """Until a call fails: the buffer may be dead, or the trainer of that lineage."""
        known = self._run.identity()
        identity = types_pb2.RunIdentity(
            run_id=known["run_id"], config_digest=known["config_digest"]
        )
        try:
            while not self._stop.wait(_PAUSE_SECONDS):
                request = buffer_pb2.GetStatusRequest(run=identity)
                status = buffer.GetStatus(request, timeout=_CALL_SECONDS)
                for step in range(status.checkpoint_step, status.next_step):
                    self._record_step(buffer, identity, step, status.policy.lineage)
        except grpc.RpcError:
            return

    def _record_step(
        self,
        buffer: buffer_pb2_grpc.BufferServiceStub,
        identity: types_pb2.RunIdentity,
        step: int,
        lineage: str,
    ) -> None:
        if lineage in self.recording.plans.get(step, {}):
            return
        request = buffer_pb2.NextBatchRequest(run=identity, lineage=lineage, step=step)
        reply = buffer.NextBatch(request, timeout=_CALL_SECONDS)
        if not reply.HasField("plan"):
            return
        missing = {
            group.group_id: group.payload_sha256
            for group in reply.plan.groups
            if group.payload_sha256 not in self.recording.payloads
        }
        payloads = _fetch(buffer, identity, list(missing))
        self.recording.payloads.update(zip(missing.values(), payloads, strict=True))
        self.recording.plans.setdefault(step, {})[lineage] = reply.plan


def _fetch(
    buffer: buffer_pb2_grpc.BufferServiceStub,
    identity: types_pb2.RunIdentity,
    group_ids: Sequence[str],
) -> list[bytes]:
    fetched: list[bytes] = []
    while len(fetched) < len(group_ids):
        request = buffer_pb2.FetchGroupsRequest(run=identity, group_ids=group_ids[len(fetched) :])
        fetched += buffer.FetchGroups(request, timeout=_CALL_SECONDS).groups
    return fetched
