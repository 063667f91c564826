"""`python -m services.rollout` as a process: from waiting to sampling, SIGTERM, kill -9.

Buffer and reward are the doubles of the unit tests; engine and model are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from dapod import rpc, wire
from dapod.policy_store import PolicyStore
from dapod.v1 import buffer_pb2_grpc, reward_pb2_grpc
from tests.rollout.doubles import V0, BufferDouble, RewardDouble

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
START_SECONDS = 240.0
"""On a busy machine; 25 to 40 s on a free one."""


@dataclass(kw_only=True)
class Neighbours:
    buffer: BufferDouble
    reward: RewardDouble
    variables: dict[str, str]
    ops_port: int
    log: Path

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[asyncio.subprocess.Process]:
        with self.log.open("a") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "services.rollout"),
                cwd=ROOT,
                env={**os.environ, **self.variables},
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def eventually(self, what: str, holds: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, (
                f"waited {seconds} s for {what}; the log ends: {self.log.read_text()[-3000:]}"
            )
            await asyncio.sleep(0.1)

    def page(self, name: str) -> str:
        """An ops page; a refusal is an answer too."""
        try:
            url = f"http://127.0.0.1:{self.ops_port}/{name}"
            with urllib.request.urlopen(url, timeout=10) as reply:
                return str(reply.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return str(error.read().decode())

    def activity(self) -> str:
        return str(json.loads(self.page("readyz"))["activity"])


@pytest.fixture
async def neighbours(model: Path, tmp_path: Path) -> AsyncIterator[Neighbours]:
    store = PolicyStore(tmp_path / "policies")
    store.publish(V0, lambda directory: _copy(model, directory))
    buffer, reward = BufferDouble([]), RewardDouble()
    buffer_server, reward_server = rpc.aio_server(), rpc.aio_server()
    buffer_pb2_grpc.add_BufferServiceServicer_to_server(buffer, buffer_server)
    reward_pb2_grpc.add_RewardServiceServicer_to_server(reward, reward_server)
    buffer_port = rpc.bind(buffer_server, "127.0.0.1", 0)
    reward_port = rpc.bind(reward_server, "127.0.0.1", 0)
    await buffer_server.start()
    await reward_server.start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ops_port = free.getsockname()[1]
    yield Neighbours(
        buffer=buffer,
        reward=reward,
        ops_port=ops_port,
        log=tmp_path / "rollout.log",
        variables={
            "DAPOD_CONFIG": str(ROOT / "configs" / "quickstart.toml"),
            "DAPOD_RUN_DIR": str(tmp_path),
            "DAPOD_BUFFER_ADDRESS": f"127.0.0.1:{buffer_port}",
            "DAPOD_REWARD_ADDRESS": f"127.0.0.1:{reward_port}",
            "DAPOD_OPS_PORT": str(ops_port),
            "DAPOD_WORKER_ID": "rollout-0",
        },
    )
    await buffer_server.stop(0)
    await reward_server.stop(0)


def _copy(model: Path, directory: Path) -> None:
    for file in model.iterdir():
        if file.is_file():
            shutil.copy(file, directory)


async def test_a_pod_samples_shows_its_metrics_and_returns_its_leases_on_sigterm(
    neighbours: Neighbours,
) -> None:
    neighbours.buffer.queue = ["g1", "g2"]
    async with neighbours.service() as process:
        await neighbours.eventually(
            "two groups", lambda: len(neighbours.buffer.submitted) == 2, START_SECONDS
        )
        group = wire.group_from_proto(neighbours.buffer.submitted["g1"].group)
        assert group.policy == V0
        assert all(len(r.token_ids) == len(r.logprobs) for r in group.rollouts)

        metrics = await asyncio.to_thread(neighbours.page, "metrics")
        assert 'dapod_rollout_groups_total{disposition="kept"} 2.0' in metrics
        assert "vllm:generation_tokens_total" in metrics
        assert "idle" in await asyncio.to_thread(neighbours.activity)

        neighbours.reward.go.clear()
        neighbours.buffer.queue = ["g3"]
        await neighbours.eventually("g3 at the reward", lambda: neighbours.reward.asked == 3, 60)
        children = psutil.Process(process.pid).children(recursive=True)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
        print(f"SIGTERM to exit: {time.monotonic() - started:.1f} s")
        assert neighbours.buffer.returned == {"lease-g3": "the pod stops"}
        await neighbours.eventually("no process left", lambda: not _running(children), 10)


async def test_sigterm_while_the_engine_starts_does_not_wait_for_it(
    neighbours: Neighbours,
) -> None:
    async with neighbours.service() as process:
        pod = psutil.Process(process.pid)
        await neighbours.eventually(
            "the engine's process", lambda: len(pod.children(recursive=True)) > 1, START_SECONDS
        )
        assert neighbours.page("readyz").find("starting the engine") > 0
        children, started = pod.children(recursive=True), time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
        print(f"SIGTERM during the start to exit: {time.monotonic() - started:.1f} s")
        await neighbours.eventually("no process left", lambda: not _running(children), 10)


async def test_kill_9_leaves_no_process_of_the_engine(neighbours: Neighbours) -> None:
    neighbours.buffer.queue = ["g1"]
    async with neighbours.service() as process:
        await neighbours.eventually(
            "a group", lambda: bool(neighbours.buffer.submitted), START_SECONDS
        )
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.kill()
        await process.wait()
        await neighbours.eventually("no process left", lambda: not _running(children), 10)


async def test_a_dead_engine_ends_the_pod_with_its_leases_returned(neighbours: Neighbours) -> None:
    neighbours.buffer.queue = ["g1"]
    async with neighbours.service() as process:
        await neighbours.eventually(
            "a group", lambda: bool(neighbours.buffer.submitted), START_SECONDS
        )
        neighbours.reward.go.clear()
        neighbours.buffer.queue = ["g2"]
        await neighbours.eventually("g2 at the reward", lambda: neighbours.reward.asked == 2, 60)
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        assert await asyncio.wait_for(process.wait(), 60) == 1
    assert "the engine failed" in neighbours.buffer.returned["lease-g2"]
    assert "the engine must be restarted" in neighbours.log.read_text()


def _running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
