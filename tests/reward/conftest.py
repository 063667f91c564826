"""Real pools over hostile verifiers."""

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.reward.metrics import RewardMetrics
from services.reward.pool import VerifierPool

MakePool = Callable[..., VerifierPool]


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of tests/reward/hostile_verifiers.py, as a user's own module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # workers look where we look
    names = importlib.import_module("hostile_verifiers").NAMES
    return [f"python:hostile_verifiers:{name}" for name in names]


@pytest.fixture
def slow_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A verifier that loads once the file "loads" is there."""
    (tmp_path / "slow.py").write_text(
        f"import pathlib, time\n"
        f"while not pathlib.Path({str(tmp_path / 'loads')!r}).exists():\n"
        f"    time.sleep(0.01)\n"
        f"def judge(response, answer): return response == answer\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "python:slow:judge"


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], str], None]:
    """Wait for a predicate; the description says what did not happen."""

    def wait(holds: Callable[[], bool], description: str) -> None:
        deadline = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline, f"not within 20 s: {description}"
            time.sleep(0.005)

    return wait


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> RewardMetrics:
    return RewardMetrics(registry)


@pytest.fixture
def make_pool(metrics: RewardMetrics, hostile: list[str]) -> Iterator[MakePool]:
    """A warm pool, of hostile verifiers if not told otherwise; stopped when the test ends."""
    with ExitStack() as pools:

        def make(
            *,
            workers: int = 1,
            deadline_seconds: float = 20.0,  # ample: only hangs need a short one
            memory_bytes: int = 64 << 20,
            verifiers: Sequence[str] = hostile,
        ) -> VerifierPool:
            pool = pools.enter_context(
                VerifierPool(
                    verifiers=verifiers,
                    workers=workers,
                    deadline_seconds=deadline_seconds,
                    memory_bytes=memory_bytes,
                    metrics=metrics,
                )
            )
            assert pool.wait_until_warm(30)
            return pool

        yield make
