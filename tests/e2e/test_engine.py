"""The real vLLM on the real model: what it samples and reports, and how it changes its weights.

One engine serves all tests, in order; the last one breaks it. `-s` shows the measured speeds.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytest_asyncio

from dapod import config as configuration
from dapod.policy_store import PolicyCorrupt, PolicyStore
from dapod.types import FinishReason, Group, PolicyVersion
from dapod.v1.buffer_pb2 import PlannedGroup
from services.rollout import settings
from services.rollout.engine import EngineFailed, Output, RequestRefused, SamplingRequest
from services.rollout.policies import PolicyReader, VerifiedPolicy
from services.rollout.vllm_engine import VllmEngine
from tests.e2e.real_engine import (
    LARGEST_ERROR,
    MEAN_ERROR,
    MEAN_ERROR_OF_TWO,
    Bench,
    differences_to_transformers,
    halve_the_norm,
    question_tokens,
    write_policy,
)

if TYPE_CHECKING:
    # At run time only where they are used: torch reads variables that the engine sets first.
    from services.trainer.batch import MicroBatch
    from services.trainer.policy import Policy
    from services.trainer.ranks import Ranks

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own, at import
]

ROOT = Path(__file__).parents[2]
V0 = PolicyVersion(number=0, lineage="aaa")
V1 = PolicyVersion(number=1, lineage="aaa")
V2 = PolicyVersion(number=2, lineage="aaa")
V3 = PolicyVersion(number=3, lineage="aaa")
LEARNING_RATE = 3e-4


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> PolicyStore:
    """v0 is the model; v1 has its final norm halved, which halves all logits; v2 lacks a tensor."""
    store = PolicyStore(tmp_path_factory.mktemp("policies"))
    store.publish(V0, lambda directory: write_policy(model, directory, lambda tensors: None))
    store.publish(V1, lambda directory: write_policy(model, directory, halve_the_norm))
    store.publish(V2, lambda directory: write_policy(model, directory, _drop_a_tensor))
    return store


def _drop_a_tensor(tensors: dict[str, Any]) -> None:
    del tensors["model.layers.0.mlp.up_proj.weight"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(model: Path, store: PolicyStore) -> AsyncIterator[Bench]:
    environment = dict(os.environ)
    config = configuration.load(ROOT / "configs" / "quickstart.toml", [f'model.path="{model}"'])
    settings.set_environment(os.environ, config, cpu=settings.is_cpu_build())
    engine = VllmEngine(
        lambda directory: settings.engine_arguments(
            config, model=directory, worker_id="bench", cpu=settings.is_cpu_build()
        )
    )
    reader = PolicyReader(store, model)
    started = time.monotonic()
    await engine.import_vllm()
    imported = time.monotonic()
    await engine.load(await reader.verify(V0))
    seconds = time.monotonic() - imported
    print(f"\nimport {imported - started:.1f} s, start {seconds:.1f} s")
    bench = Bench(
        engine=engine,
        store=store,
        reader=reader,
        prompt=question_tokens(model),
        start_seconds=seconds,
    )
    try:
        yield bench
    finally:
        await engine.stop()
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture(scope="module")
def ranks(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """The trainer's side of a comparison: this process, once the engine has one of its own."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    from tests.trainer.harness import one_rank

    with one_rank(tmp_path_factory.mktemp("group")) as ranks:
        yield ranks


def _policy(directory: Path, ranks: Ranks, temperature: float) -> Policy:
    """The quickstart's trainer with these weights at this temperature."""
    from services.trainer.policy import Policy

    overrides = [f'model.path="{directory}"', f"sampling.temperature={temperature}"]
    return Policy(configuration.load(ROOT / "configs" / "quickstart.toml", overrides), ranks)


def _batch(prompt: np.ndarray, outputs: tuple[Output, ...]) -> MicroBatch:
    """All outputs as one micro-batch of the trainer."""
    from services.trainer import cut
    from services.trainer.batch import assemble

    group = Group(group_id="g", prompt_token_ids=prompt, rollouts=tuple(o.rollout for o in outputs))
    lengths = [len(rollout.token_ids) for rollout in group.rollouts]
    planned = PlannedGroup(group_id="g", prompt_tokens=len(prompt), response_tokens=lengths)
    ((rows,),) = cut.cut([planned], ranks=1, tokens_per_micro_batch=10**6)
    return assemble(rows, {"g": group}, {"g": [0.0] * len(lengths)}, {"g": [1.0] * len(lengths)})


def _to_trainer(policy: Policy, prompt: np.ndarray, outputs: tuple[Output, ...]) -> np.ndarray:
    """|engine's log-prob - trainer's in bf16| of every sampled token."""
    import torch

    batch = _batch(prompt, outputs)
    with torch.no_grad():
        logprobs, _ = policy.log_probs(batch)
    return (logprobs - batch.rollout_logprobs).abs().numpy()


def _greedy(policy: Policy, prompt: np.ndarray, output: Output) -> tuple[np.ndarray, np.ndarray]:
    """The trainer's best token at every position of an output, and its lead over the second."""
    import torch

    response = output.rollout.token_ids
    tokens = torch.tensor(np.concatenate([prompt, response])[None], dtype=torch.long)
    with torch.no_grad():
        logits = policy.module.model(tokens).logits[0, len(prompt) - 1 : -1].float()
    two = logits.topk(2, dim=-1)
    return two.indices[:, 0].numpy(), (two.values[:, 0] - two.values[:, 1]).numpy()


async def test_log_probs_are_those_of_the_sampled_distribution(bench: Bench) -> None:
    outputs = await bench.sample()
    differences = differences_to_transformers(bench.store.path(V0), bench.prompt, outputs)
    print(f"T=1: mean {differences.mean():.4f} max {differences.max():.3f}")
    assert differences.mean() < MEAN_ERROR
    assert differences.max() < LARGEST_ERROR


@pytest.mark.parametrize("temperature", [0.7, 1.3])
async def test_at_another_temperature_engine_and_trainer_agree_on_the_log_probs(
    bench: Bench, ranks: Ranks, temperature: float
) -> None:
    outputs = await bench.sample(temperature=temperature)
    policy = _policy(bench.store.path(V0), ranks, temperature)
    differences = _to_trainer(policy, bench.prompt, outputs)
    exact = differences_to_transformers(bench.store.path(V0), bench.prompt, outputs, temperature)
    print(
        f"T={temperature}: {len(differences)} tokens, engine to trainer mean "
        f"{differences.mean():.4f} max {differences.max():.3f}, engine to float32 mean "
        f"{exact.mean():.4f} max {exact.max():.3f}"
    )
    # A low temperature makes differences between logits larger, rounding included.
    assert differences.mean() < MEAN_ERROR_OF_TWO / min(temperature, 1.0)
    assert differences.max() < LARGEST_ERROR / min(temperature, 1.0)
    # Log-probs of the raw logits, vLLM's default, would be further off than any rounding.
    raw = differences_to_transformers(bench.store.path(V0), bench.prompt, outputs, 1.0)
    assert raw.mean() > 2 * differences.mean()


async def test_every_token_has_its_log_prob_and_its_policy_and_eos_is_one_of_them(
    bench: Bench,
) -> None:
    outputs = await bench.sample(rollouts=32)
    for output in outputs:
        rollout = output.rollout
        assert len(rollout.token_ids) == len(rollout.logprobs)
        assert [(s.policy, s.tokens) for s in rollout.policy_spans] == [
            (V0, len(rollout.token_ids))
        ]
        assert "<|im_end|>" not in output.text
    stopped = [o.rollout for o in outputs if o.rollout.finish_reason is FinishReason.STOP]
    cut = [o.rollout for o in outputs if o.rollout.finish_reason is FinishReason.LENGTH]
    assert stopped and cut
    assert {int(rollout.token_ids[-1]) for rollout in stopped} == {2}
    assert {len(rollout.token_ids) for rollout in cut} == {16}
    assert all(rollout.truncated for rollout in cut)


async def test_the_rollouts_of_a_group_differ_and_so_do_those_of_two_requests(bench: Bench) -> None:
    first, second = await bench.sample(), await bench.sample()
    assert len({tuple(output.rollout.token_ids) for output in first}) > 1
    assert [o.rollout.token_ids.tolist() for o in first] != [
        o.rollout.token_ids.tolist() for o in second
    ]


async def test_a_prompt_of_another_vocabulary_is_refused_and_the_engine_lives_on(
    bench: Bench,
) -> None:
    request = SamplingRequest(
        request_id="odd",
        prompt_token_ids=np.array([1, 99_999_999], dtype=np.int32),
        rollouts=2,
        temperature=1.0,
        top_p=1.0,
        max_response_tokens=4,
    )
    with pytest.raises(RequestRefused, match="vocabulary"):
        await bench.engine.sample(request)
    assert len(await bench.sample(rollouts=2)) == 2


async def test_cancelling_a_request_aborts_it(bench: Bench) -> None:
    task = asyncio.create_task(bench.sample(rollouts=64))
    await bench.in_flight()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(await bench.sample(rollouts=2)) == 2


async def test_it_samples_64_sequences_at_once(bench: Bench) -> None:
    started = time.monotonic()
    groups = await asyncio.gather(*(bench.sample() for _ in range(8)))
    seconds = time.monotonic() - started
    tokens = sum(len(output.rollout.token_ids) for group in groups for output in group)
    print(f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.0f} tokens/s")
    assert all(len(group) == 8 for group in groups)


async def test_a_version_without_a_tensor_is_refused_before_the_engine_is_touched(
    bench: Bench,
) -> None:
    with pytest.raises(PolicyCorrupt, match=re.escape("layers.0.mlp.up_proj.weight")):
        await bench.reader.verify(V2)
    assert bench.engine.ready and bench.engine.loaded == V0
    outputs = await bench.sample()
    assert (
        differences_to_transformers(bench.store.path(V0), bench.prompt, outputs).mean() < MEAN_ERROR
    )


async def test_a_load_waits_for_running_requests_and_then_samples_from_the_new_weights(
    bench: Bench,
) -> None:
    """The prompt has been cached many times by now: old keys would show."""
    running = asyncio.create_task(bench.sample())
    await bench.in_flight()
    verified = await bench.reader.verify(V1)
    started = time.monotonic()
    await bench.engine.load(verified)
    print(f"load {time.monotonic() - started:.2f} s")
    assert {s.policy for o in await running for s in o.rollout.policy_spans} == {V0}

    outputs = await bench.sample()
    assert {s.policy for o in outputs for s in o.rollout.policy_spans} == {V1}
    new = differences_to_transformers(bench.store.path(V1), bench.prompt, outputs)
    old = differences_to_transformers(bench.store.path(V0), bench.prompt, outputs)
    print(f"after the load: mean {new.mean():.4f} to the new weights, {old.mean():.2f} to the old")
    assert new.mean() < MEAN_ERROR
    assert old.mean() > 0.5


async def test_the_engine_follows_what_the_trainer_learned_and_published(
    bench: Bench, ranks: Ranks
) -> None:
    """A real update, published as the trainer does, compared with the trainer's own weights."""
    await bench.engine.load(await bench.reader.verify(V0))
    temperature = 0.7
    outputs = await bench.sample(temperature)
    policy = _policy(bench.store.path(V0), ranks, temperature)
    batch = _batch(bench.prompt, outputs)
    before = policy.log_probs(batch)[0]
    policy.backward(before.mean(), last=True)  # makes what was sampled less likely
    policy.update(LEARNING_RATE)
    bench.store.publish(V3, policy.write)

    moved = _to_trainer(policy, bench.prompt, outputs)
    await bench.engine.load(await bench.reader.verify(V3))
    outputs = await bench.sample(temperature)
    assert {s.policy for o in outputs for s in o.rollout.policy_spans} == {V3}
    new = _to_trainer(policy, bench.prompt, outputs)
    old = differences_to_transformers(bench.store.path(V0), bench.prompt, outputs, temperature)
    print(
        f"one update moved the log-probs by {moved.mean():.2f}; after the load: mean "
        f"{new.mean():.4f} max {new.max():.3f} to the trainer, {old.mean():.2f} to the old weights"
    )
    assert moved.mean() > 0.5 and old.mean() > 0.5
    assert new.mean() < MEAN_ERROR_OF_TWO / temperature
    assert new.max() < LARGEST_ERROR / temperature

    (greedy,) = await bench.sample(temperature=0.0, rollouts=1)
    best, margin = _greedy(policy, bench.prompt, greedy)
    sure = margin > 2 * LARGEST_ERROR
    print(f"greedy: {sure.sum()} of {len(sure)} tokens have a margin")
    assert sure.any()
    assert (greedy.rollout.token_ids == best)[sure].all()


async def test_a_load_that_fails_half_way_leaves_an_engine_that_samples_no_more(
    bench: Bench, tmp_path: Path
) -> None:
    with pytest.raises(EngineFailed, match="half-way"):
        await bench.engine.load(VerifiedPolicy(policy=V2, directory=tmp_path / "gone"))
    assert not bench.engine.ready
    with pytest.raises(EngineFailed):
        await bench.sample()
    with pytest.raises(EngineFailed):
        await bench.engine.load(await bench.reader.verify(V0))
