"""One real step of the trainer on a GPU, compared with float32 on the CPU."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dapod.types import Group
from services.trainer import batch as batches
from services.trainer import cut
from services.trainer.batch import MicroBatch
from services.trainer.logprobs import ResponseLogProbs
from services.trainer.policy import Policy
from services.trainer.ranks import Ranks
from tests.e2e.real_engine import LARGEST_ERROR, MEAN_ERROR, question_tokens
from tests.trainer.doubles import make_group, make_plan
from tests.trainer.harness import OF_THE_LIBRARIES, RecordingPolicy, make_config, train_step

pytestmark = [pytest.mark.timeout(600), *OF_THE_LIBRARIES]

ANSWERS = ("12", "The answer is 12.", "7 + 5 equals 13.", "I do not know, but 11 is near.")
HUNDRED_TOKENS = 100 * 4 * 49152
"""Few enough that a batch takes several chunks."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """One rank, joined as the service joins: nccl for gradients, gloo for messages."""
    os.environ.setdefault("LOCAL_RANK", "0")
    torch.cuda.set_device(0)
    rendezvous = tmp_path_factory.mktemp("group") / "rendezvous"
    dist.init_process_group("nccl", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    try:
        yield Ranks()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def groups(model: Path) -> list[Group]:
    """Real text, so that log-probs are of the usual size."""
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    answers = [np.asarray(tokenizer(text)["input_ids"], dtype=np.int32) for text in ANSWERS]
    prompt = question_tokens(model)
    correct = [True, True, False, False]
    made = [make_group(f"0-{i}", [len(a) for a in answers], correct=correct) for i in range(2)]
    return [
        dataclasses.replace(
            group,
            prompt_token_ids=prompt,
            rollouts=tuple(
                dataclasses.replace(rollout, token_ids=answer)
                for rollout, answer in zip(group.rollouts, answers, strict=True)
            ),
        )
        for group in made
    ]


def one_batch(groups: list[Group]) -> MicroBatch:
    plan = make_plan(0, groups, len(groups))
    ((rows,),) = cut.cut(list(plan.groups), ranks=1, tokens_per_micro_batch=10**6)
    named = {group.group_id: group for group in groups}
    weights = {group.group_id: [1.0] * len(group.rollouts) for group in groups}
    return batches.assemble(rows, named, batches.advantages(named, scale="std"), weights)


def config(model: Path, **trainer: Any) -> Any:
    return make_config(
        model,
        sampling={"max_prompt_tokens": 64},
        algorithm={"prompts_per_step": 2, "prompts_per_update": 1},
        optimiser={"learning_rate": 1e-4},
        trainer={"tokens_per_micro_batch": 1024} | trainer,
    )


def off_from_the_cpu(policy: Policy, batch: MicroBatch, directory: Path) -> np.ndarray:
    """|log-prob on the GPU in bf16 - of the files in `directory` on the CPU in float32|."""
    exact = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        here, _ = policy.log_probs(batch)
        there, _ = ResponseLogProbs(exact, 1.0)(
            batch.input_ids, batch.positions, batch.mask, batch.rows, batch.columns, batch.targets
        )
    return (here - there).abs().numpy()


@pytest.mark.parametrize(
    "trainer",
    [
        {"zero_stage": 0},
        {"zero_stage": 2},
        {"zero_stage": 2, "offload_optimiser": True},
        {"zero_stage": 3, "gradient_checkpointing": True},
        {"zero_stage": 3, "gradient_checkpointing": True, "offload_optimiser": True},
    ],
    ids=str,
)
def test_a_step_on_a_gpu_trains_what_it_publishes(
    model: Path, ranks: Ranks, groups: list[Group], tmp_path: Path, trainer: dict[str, Any]
) -> None:
    settings, batch = config(model, **trainer), one_batch(groups)
    policy = RecordingPolicy(settings, ranks, dtype=torch.bfloat16, logits_bytes=HUNDRED_TOKENS)
    assert policy._engine.device.type == "cuda"
    before = off_from_the_cpu(policy, batch, model)
    assert before.mean() < MEAN_ERROR and before.max() < LARGEST_ERROR

    step = train_step(settings, ranks, make_plan(0, groups, 1), groups, policy=policy).step
    assert step.updates == 2 and step.rollouts_dropped == 0
    assert step.grad_norm > 0 and math.isfinite(step.loss)

    published = tmp_path / "v1"
    published.mkdir()
    policy.write(published)
    base, trained = (load_file(d / "model.safetensors") for d in (model, published))
    assert base.keys() == trained.keys()
    assert any(not torch.equal(base[name], trained[name]) for name in base)
    after = off_from_the_cpu(policy, batch, published)
    assert after.mean() < MEAN_ERROR and after.max() < LARGEST_ERROR


def test_the_gradient_on_a_gpu_is_the_one_of_the_cpu(
    model: Path, ranks: Ranks, groups: list[Group]
) -> None:
    """In bf16 a gradient's elements are noisy; its direction is not."""
    batch = one_batch(groups)
    weights = torch.linspace(-1.0, 1.0, len(batch.targets))
    policy = RecordingPolicy(config(model), ranks, dtype=torch.bfloat16)
    policy.backward((policy.log_probs(batch)[0] * weights).sum(), last=True)
    policy.update(0.0)

    exact = ResponseLogProbs(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), 1.0)
    logprobs, _ = exact(
        batch.input_ids, batch.positions, batch.mask, batch.rows, batch.columns, batch.targets
    )
    (logprobs * weights).sum().backward()
    one = torch.cat([policy.gradients[0][n].flatten().cpu() for n, _ in exact.named_parameters()])
    two = torch.cat([p.grad.flatten() for p in exact.parameters()])
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.99
