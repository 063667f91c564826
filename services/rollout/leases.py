"""The leases a pod has in hand, a task for each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from services.rollout.buffer_client import BufferClient, LeasedPrompt
from services.rollout.group_work import GroupFailed, GroupWork
from services.rollout.metrics import RolloutMetrics

FAILURE_SECONDS = 1.0
"""Pause of a slot whose group failed, so that a prompt that always fails does not spin."""

log = logging.getLogger("dapod.rollout")


@dataclass(kw_only=True)
class _Open:
    prompt: LeasedPrompt
    task: asyncio.Task[None]
    sampling: bool = True


class OpenLeases:
    """`ended` is called whenever a lease has left, for whatever reason."""

    def __init__(
        self,
        *,
        work: GroupWork,
        buffer: BufferClient,
        metrics: RolloutMetrics,
        ended: Callable[[], None],
    ) -> None:
        self._work = work
        self._buffer = buffer
        self._metrics = metrics
        self._ended = ended
        self._open: dict[str, _Open] = {}
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self._open)

    @property
    def ids(self) -> list[str]:
        return list(self._open)

    def check(self) -> None:
        """Raises what ended a group and concerns the whole process."""
        if self._failure is not None:
            raise self._failure

    def admit(self, prompt: LeasedPrompt) -> None:
        """Starts the work on a lease."""
        task = asyncio.create_task(self._carry(prompt), name=f"group {prompt.group_id}")
        self._open[prompt.lease_id] = _Open(prompt=prompt, task=task)
        task.add_done_callback(lambda done: self._leave(prompt.lease_id, done))
        self._count()

    def lose(self, lease_id: str) -> None:
        """The buffer gave it up: stop sampling. What is sampled already may still be taken."""
        lease = self._open.get(lease_id)
        if lease is None or not lease.sampling or lease.task.cancelling():
            return
        log.warning("group=%s lease=%s lost: sampling stopped", lease.prompt.group_id, lease_id)
        self._metrics.groups.labels("lost").inc()
        lease.task.cancel()

    async def cancel(self) -> list[str]:
        """Stops all work and returns the leases that were open."""
        cancelled = list(self._open.values())
        for lease in cancelled:
            lease.task.cancel()
        await asyncio.gather(*(lease.task for lease in cancelled), return_exceptions=True)
        return [lease.prompt.lease_id for lease in cancelled]

    async def _carry(self, prompt: LeasedPrompt) -> None:
        try:
            disposition = await self._work.carry(prompt, lambda: self._sampled(prompt.lease_id))
        except GroupFailed as error:
            await self._give_back(prompt, str(error))
        else:
            self._metrics.groups.labels(disposition.value).inc()

    def _sampled(self, lease_id: str) -> None:
        self._open[lease_id].sampling = False

    async def _give_back(self, prompt: LeasedPrompt, reason: str) -> None:
        log.warning("group=%s lease=%s returned: %s", prompt.group_id, prompt.lease_id, reason)
        self._metrics.groups.labels("returned").inc()
        # A lease that cannot be returned expires.
        with contextlib.suppress(grpc.RpcError):
            await self._buffer.give_back([prompt.lease_id], reason, in_vain=True)
        await asyncio.sleep(FAILURE_SECONDS)

    def _leave(self, lease_id: str, done: asyncio.Task[None]) -> None:
        del self._open[lease_id]
        if not done.cancelled() and done.exception() is not None:
            self._failure = done.exception()
        self._count()
        self._ended()

    def _count(self) -> None:
        self._metrics.in_flight.set(len(self._open))
        self._metrics.idle.busy(bool(self._open))
