"""A wedged engine is found by its steps, which fail to come; a slow one goes on."""

from __future__ import annotations

import asyncio

import pytest

from services.rollout.engine import EngineFailed
from services.rollout.progress import EngineProgress
from services.rollout.vllm_engine import VllmEngine
from tests.virtual_clock import Clock


def test_idle_time_runs_from_the_last_step_or_from_the_moment_asked_about() -> None:
    clock = Clock()
    progress = EngineProgress(clock)
    clock.now = 100.0
    assert progress.idle_seconds(since=clock() - 30) == 30
    progress(object(), 0).record(None, None, mm_cache_stats=None, engine_idx=0)
    clock.now = 110.0
    assert progress.idle_seconds(since=0.0) == 10


async def test_a_request_of_an_engine_that_takes_no_step_fails_and_so_does_the_engine() -> None:
    engine = VllmEngine(lambda directory: {}, stall_seconds=0.2)
    request = asyncio.ensure_future(asyncio.sleep(3600))
    with pytest.raises(EngineFailed, match="took no step for"):
        await engine._watched(_wait_for(request))
    assert request.cancelled(), "nothing of it is left"
    with pytest.raises(EngineFailed, match="took no step for"):
        engine.check()


async def test_a_request_may_take_as_long_as_the_engine_takes_steps() -> None:
    engine = VllmEngine(lambda directory: {}, stall_seconds=0.2)

    async def long_request() -> str:
        for _ in range(20):
            await asyncio.sleep(0.05)
            engine._progress.record()
        return "done"

    assert await engine._watched(long_request()) == "done"


async def _wait_for(request: asyncio.Future[None]) -> None:
    await request
