"""The rollout's loop: leases in, judged groups out, the newest policy in between.

    ask ──► admit: one task per lease     sample (vLLM) ─► score (reward) ─► submit (buffer)
     ▲          a newer policy is named?  announce it ─► verify its files ─► drain ─► load
     └───── wait: a slot is free, a refusal's time is over, or the keeper had its turn

Beside it the keeper renews all open leases at a third of the lease time, loads and engine starts
included; with none that is the pod's heartbeat. It is the only one that hears of lost leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import grpc

from dapod.health import Health
from dapod.policy_store import PolicyCorrupt, PolicyMissing
from dapod.types import PolicyVersion, RunState
from services.rollout.buffer_client import BufferClient, Grant, Holding
from services.rollout.engine import Engine, EngineFailed
from services.rollout.group_work import GroupWork
from services.rollout.leases import OpenLeases
from services.rollout.metrics import Idle, RolloutMetrics
from services.rollout.policies import PolicyReader, VerifiedPolicy

UNREADABLE_SECONDS = 5.0
"""How long a policy whose files were wrong is left alone; a newer one may be named meanwhile."""

log = logging.getLogger("dapod.rollout")


class Worker:
    """`run()` works until it is cancelled or something rises that the process must end for."""

    def __init__(
        self,
        *,
        slots: int,
        buffer: BufferClient,
        work: GroupWork,
        engine: Engine,
        policies: PolicyReader,
        health: Health,
        metrics: RolloutMetrics,
    ) -> None:
        self._slots = slots
        self._buffer = buffer
        self._engine = engine
        self._policies = policies
        self._health = health
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._heard = asyncio.Event()
        self._open = OpenLeases(work=work, buffer=buffer, metrics=metrics, ended=self._wake.set)
        self._lease_seconds = 0.0
        self._unreadable: tuple[PolicyVersion, float, str] | None = None

    @property
    def groups_in_flight(self) -> int:
        return len(self._open)

    async def run(self) -> None:
        """Raises `EngineFailed`: restart the process; `ConfigError`: the buffer has another run."""
        reason = "the pod stops"
        tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._keep())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except EngineFailed as error:
            reason = f"the engine failed: {error}"
            raise
        except Exception as error:
            reason = f"the pod failed: {type(error).__name__}: {error}"
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._return_leases(reason)

    async def _work(self) -> None:
        while True:
            self._check()
            self._wake.clear()
            grant = await self._ask()
            for prompt in grant.prompts:
                self._open.admit(prompt)
            if grant.policy is not None and self._wants(grant.policy, grant.state):
                await self._change_over(grant.policy)
            else:
                await self._wait(grant)

    async def _keep(self) -> None:
        """The keeper."""
        await self._heard.wait()
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            await self._heartbeat()
            self._wake.set()

    async def _ask(self) -> Grant:
        """Asks for a prompt for each free slot; for none while there is nothing to sample with."""
        free = self._slots - len(self._open) if self._engine.ready else 0
        grant = await self._buffer.lease(free)
        self._lease_seconds = grant.lease_seconds
        self._heard.set()
        return grant

    async def _heartbeat(self) -> None:
        """Renews what is held and says what is loaded: a full Redis takes that too."""
        for lease_id in await self._buffer.renew(self._open.ids):
            self._open.lose(lease_id)

    async def _wait(self, grant: Grant) -> None:
        """Until a group ended, the keeper had its turn, or time is over."""
        self._show(grant)
        full = len(self._open) >= self._slots
        slow = full or grant.state is RunState.FINISHED
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grant.lease_seconds / 3 if slow else grant.retry_seconds):
                await self._wake.wait()

    def _wants(self, policy: PolicyVersion, state: RunState) -> bool:
        """Number or lineage differs: load it, unless its files were found wrong a moment ago.

        The last policy of a finished run is not loaded: nothing would be sampled from it.
        """
        if self._unreadable is not None and self._unreadable[0] != policy:
            self._unreadable = None  # superseded
        if policy == self._engine.loaded or state is RunState.FINISHED:
            return False
        return self._unreadable is None or time.monotonic() >= self._unreadable[1]

    async def _change_over(self, policy: PolicyVersion) -> None:
        """Nothing is admitted from here on; groups in hand finish with the policy they have."""
        self._metrics.idle.because(Idle.LOADING)
        self._health.waiting(f"loading policy {policy}")
        self._hold(loading=policy)
        # Announced before a byte is read: it is not pruned under our hands.
        await self._heartbeat()
        try:
            verified = await self._policies.verify(policy)
        except (PolicyMissing, PolicyCorrupt, OSError) as error:
            self._put_off(policy, str(error))
        else:
            self._unreadable = None
            await self._drain(policy)
            await self._load(verified)
        self._hold(loading=None)

    async def _drain(self, policy: PolicyVersion) -> None:
        while self._open.ids:
            self._health.waiting(f"loading {policy}: {len(self._open)} groups to finish first")
            self._check()
            self._wake.clear()
            await self._wake.wait()
        self._check()

    async def _load(self, verified: VerifiedPolicy) -> None:
        starting = self._engine.loaded is None
        doing = "starting the engine with" if starting else "loading"
        self._health.waiting(f"{doing} {verified.policy}")
        self._metrics.engine_running.set(0)
        started = time.monotonic()
        try:
            await self._engine.load(verified)
        except EngineFailed:
            self._metrics.load_failures.labels("engine").inc()
            raise
        seconds = time.monotonic() - started
        self._metrics.load_seconds.observe(seconds)
        self._metrics.policy_version.set(verified.policy.number)
        self._metrics.engine_running.set(1)
        self._metrics.last_progress.set_to_current_time()
        log.info("policy %s loaded in %.1f s", verified.policy, seconds)

    def _put_off(self, policy: PolicyVersion, why: str) -> None:
        """The engine was not touched: it goes on with what it has, if the buffer grants it."""
        log.error("policy %s is not loaded: %s", policy, why)
        self._metrics.load_failures.labels("files").inc()
        self._unreadable = (policy, time.monotonic() + UNREADABLE_SECONDS, why)

    def _hold(self, *, loading: PolicyVersion | None) -> None:
        self._buffer.holding = Holding(loaded=self._engine.loaded, loading=loading)

    def _check(self) -> None:
        self._open.check()
        self._engine.check()

    def _show(self, grant: Grant) -> None:
        """Says what this pod does, or why it does nothing."""
        loaded, groups = self._engine.loaded, len(self._open)
        if self._unreadable is not None:
            policy, _, why = self._unreadable
            self._metrics.idle.because(Idle.LOADING)
            self._health.waiting(f"policy {policy} cannot be loaded: {why}")
        elif grant.state is RunState.FINISHED:
            self._metrics.idle.because(Idle.FINISHED)
            self._health.doing(f"the run has finished: {grant.refusal or 'there is no more work'}")
        elif loaded is None:
            self._metrics.idle.because(Idle.NO_POLICY)
            self._health.waiting(grant.refusal or "no policy has been published yet")
        elif groups:
            self._metrics.idle.because(Idle.REFUSED)
            self._health.doing(f"sampling {groups} groups with policy {loaded}")
        else:
            self._metrics.idle.because(Idle.REFUSED)
            self._health.doing(f"idle with policy {loaded}: {grant.refusal}")

    async def _return_leases(self, reason: str) -> None:
        lease_ids = await self._open.cancel()
        if not lease_ids:
            return
        self._metrics.groups.labels("returned").inc(len(lease_ids))
        try:
            returned = await self._buffer.give_back(lease_ids, reason)
            log.info("returned %d leases: %s", returned, reason)
        except grpc.RpcError as error:
            log.warning("%d leases are left to expire: %s", len(lease_ids), error)
