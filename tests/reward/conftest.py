"""Real pools over hostile verifiers."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.reward.metrics import RewardMetrics
from services.reward.pool import VerifierPool

MakePool = Callable[..., VerifierPool]


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
def make_pool(metrics: RewardMetrics, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePool]:
    """A warm pool; stopped when the test ends."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))  # workers look where we look
    with ExitStack() as pools:

        def make(
            *,
            workers: int = 1,
            deadline_seconds: float = 20.0,  # ample: only hangs need a short one
            memory_bytes: int = 64 << 20,
            verifiers_module: str = "hostile_verifiers",
        ) -> VerifierPool:
            pool = pools.enter_context(
                VerifierPool(
                    workers=workers,
                    deadline_seconds=deadline_seconds,
                    memory_bytes=memory_bytes,
                    metrics=metrics,
                    verifiers_module=verifiers_module,
                )
            )
            assert pool.wait_until_warm(30)
            return pool

        yield make
