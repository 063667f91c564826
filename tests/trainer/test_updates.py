"""The gradient of a step: what it is, and what it does not depend on (invariant 7)."""

import itertools
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from dapod.algorithm import group_advantages, importance_weight, token_objective
from dapod.heartbeat import Heartbeat
from services.trainer.cut import SHARED_ROW_TOKENS, cut, updates
from services.trainer.policy import UpdateSkipped
from tests.trainer.doubles import make_group, make_plan
from tests.trainer.harness import (
    OF_THE_LIBRARIES,
    RecordingPolicy,
    described,
    make_config,
    relative_error,
    train_step,
)

pytestmark = OF_THE_LIBRARIES

UNEVEN = ([1, 60, 3, 9], [40, 2, 2, 33], [5, 5, 5, 5], [64, 1, 17, 30])


@pytest.fixture(scope="module")
def groups():
    return [
        make_group(
            f"0-{i}", lengths, correct=[True, False, i % 2 == 0, False], prompt_tokens=3 + 4 * i
        )
        for i, lengths in enumerate(UNEVEN)
    ]


@pytest.fixture(scope="module")
def trained(tiny_model, ranks, groups):
    return train_step(make_config(tiny_model), ranks, make_plan(0, groups, 2), groups)


def forward(model, group, rollout):
    """Log-probs of one rollout by plain transformers in fp32, no batching, no tricks."""
    prompt = torch.from_numpy(group.prompt_token_ids).long()
    response = torch.from_numpy(rollout.token_ids).long()
    logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0]
    logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1].float(), dim=-1)
    return logprobs.gather(1, response[:, None])[:, 0]


def test_the_first_update_has_the_gradient_of_equation_8(tiny_model, trained, groups):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for group in groups[:2]:
        advantages = group_advantages([r.verdict.reward for r in group.rollouts])
        tokens = sum(len(r.token_ids) for r in group.rollouts)
        for rollout, advantage in zip(group.rollouts, advantages, strict=True):
            logprobs = forward(model, group, rollout)
            ratio = torch.exp(logprobs - logprobs.detach())
            weight = torch.exp(logprobs.detach() - torch.from_numpy(rollout.logprobs)).clamp(
                max=2.0
            )
            (-(weight * ratio * advantage).sum() / tokens / 2).backward()
    reference = {f"model.{n}": p.grad for n, p in model.named_parameters()}
    assert relative_error(reference, trained.gradients[0]) < 1e-5


def test_the_loss_of_the_first_update_is_the_reference_in_float64(tiny_model, ranks, groups):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    config = make_config(tiny_model, algorithm={"prompts_per_step": 4, "prompts_per_update": 4})
    result = train_step(config, ranks, make_plan(0, groups, 4), groups)
    total = 0.0
    for group in groups:
        advantages = group_advantages([r.verdict.reward for r in group.rollouts])
        tokens = sum(len(r.token_ids) for r in group.rollouts)
        for rollout, advantage in zip(group.rollouts, advantages, strict=True):
            with torch.no_grad():
                ours = forward(model, group, rollout).tolist()
            for now, then in zip(ours, rollout.logprobs.tolist(), strict=True):
                objective = token_objective(now, now, advantage, clip_low=0.2, clip_high=0.28)
                total -= importance_weight(now, then, 2.0) * objective / tokens / len(groups)
    assert result.step.loss == pytest.approx(total, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("tokens_per_micro_batch", [81, 200, 4096])
def test_the_gradient_does_not_depend_on_the_micro_batches(
    tiny_model, ranks, groups, trained, tokens_per_micro_batch
):
    config = make_config(tiny_model, trainer={"tokens_per_micro_batch": tokens_per_micro_batch})
    other = train_step(config, ranks, make_plan(0, groups, 2), groups)
    assert len(other.gradients) == len(trained.gradients) == 2
    for one, two in zip(trained.gradients, other.gradients, strict=True):
        assert relative_error(one, two) < 1e-5


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_the_gradient_does_not_depend_on_the_zero_stage(
    tiny_model, ranks, groups, trained, zero_stage
):
    config = make_config(tiny_model, trainer={"zero_stage": zero_stage})
    other = train_step(config, ranks, make_plan(0, groups, 2), groups)
    for one, two in zip(trained.gradients, other.gradients, strict=True):
        assert relative_error(one, two) < 1e-5


def test_the_gradient_does_not_depend_on_the_order_within_an_update(
    tiny_model, ranks, groups, trained
):
    swapped = [groups[1], groups[0], groups[3], groups[2]]
    other = train_step(make_config(tiny_model), ranks, make_plan(0, swapped, 2), swapped)
    for one, two in zip(trained.gradients, other.gradients, strict=True):
        assert relative_error(one, two) < 1e-5


def test_an_unjudged_rollout_changes_nothing_but_its_absence(tiny_model, ranks):
    config = make_config(tiny_model, algorithm={"prompts_per_step": 1, "prompts_per_update": 1})
    three = make_group("a", [9, 5, 7], correct=[True, False, None])
    two = type(three)(
        group_id="a", prompt_token_ids=three.prompt_token_ids, rollouts=three.rollouts[:2]
    )
    with_it = train_step(config, ranks, make_plan(0, [three], 1), [three])
    without = train_step(config, ranks, make_plan(0, [two], 1), [two])
    assert relative_error(without.gradients[0], with_it.gradients[0]) < 1e-5
    assert with_it.step.tokens_trained == 14


def test_later_updates_move_the_ratio_and_clip(tiny_model, ranks, groups):
    config = make_config(tiny_model, optimiser={"learning_rate": 3e-2})
    step = train_step(config, ranks, make_plan(0, groups, 2), groups).step
    assert step.clip_fraction_low + step.clip_fraction_high > 0
    assert step.updates == 2


def test_old_logprobs_of_the_engine_put_the_mismatch_into_the_ratio(tiny_model, ranks, groups):
    config = make_config(tiny_model, algorithm={"old_logprobs": "rollout"})
    step = train_step(config, ranks, make_plan(0, groups, 2), groups).step
    # Random log-probs are far from the model's, so the clip binds from the first update on.
    assert step.clip_fraction_low > 0.05 and step.clip_fraction_high > 0.05


def test_the_statistics_are_means_over_trained_tokens(trained, groups):
    step = trained.step
    assert step.tokens_trained == sum(sum(lengths) for lengths in UNEVEN)
    assert 0 < step.entropy_nats <= math.log(64)
    assert step.mismatch_kl_nats > 0 and step.grad_norm > 0
    assert all(math.isfinite(value) for value in described(step).values())


def test_a_policy_that_has_not_moved_is_the_reference_exactly(tiny_model, ranks, groups):
    algorithm = {"prompts_per_update": 4, "kl_coefficient": 0.1}
    config = make_config(tiny_model, algorithm=algorithm)
    one = train_step(config, ranks, make_plan(0, groups, 4), groups)
    assert one.step.reference_kl_nats == 0.0
    two = train_step(
        make_config(tiny_model, algorithm={"kl_coefficient": 0.1}),
        ranks,
        make_plan(0, groups, 2),
        groups,
    )
    assert two.step.reference_kl_nats > 0.0


def test_the_temperature_divides_the_logits(tiny_model, ranks, groups):
    hot = make_config(
        tiny_model,
        sampling={
            "max_prompt_tokens": 16,
            "max_response_tokens": 64,
            "temperature": 2.0,
        },
    )
    plan = make_plan(0, groups, 2)
    warm = train_step(make_config(tiny_model), ranks, plan, groups).step
    assert train_step(hot, ranks, plan, groups).step.entropy_nats > warm.entropy_nats


BROKEN_TOKEN = 63


@pytest.fixture(scope="module")
def broken_model(tiny_model, tmp_path_factory):
    """A model that answers NaN to whatever token 63 stands before."""
    broken = shutil.copytree(tiny_model, tmp_path_factory.mktemp("nan") / "model")
    tensors = load_file(broken / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.embed_tokens.weight"][BROKEN_TOKEN] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    settings = (broken / "config.json").read_text()
    (broken / "config.json").write_text(
        settings.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    )
    return broken


def sound_group(group_id, lengths):
    correct = [True] + [False] * (len(lengths) - 1)
    return make_group(group_id, lengths, correct=correct, vocabulary=BROKEN_TOKEN)


def test_a_rollout_without_finite_logprobs_is_dropped_and_counted(broken_model, ranks):
    config = make_config(
        broken_model,
        sampling={"max_prompt_tokens": 16, "max_response_tokens": 4096},
        algorithm={"prompts_per_step": 1, "prompts_per_update": 1},
        trainer={"tokens_per_micro_batch": 8192},
    )
    group = sound_group("a", [6, 6, 2 * SHARED_ROW_TOKENS])
    group.rollouts[2].token_ids[2] = BROKEN_TOKEN
    result = train_step(config, ranks, make_plan(0, [group], 1), [group])
    assert result.step.rollouts_dropped == 1
    assert result.step.tokens_trained == 12
    assert all(torch.isfinite(g).all() for g in result.gradients[0].values())


def broken_by_the_model(group, index):
    group.rollouts[index].token_ids[2] = BROKEN_TOKEN


def broken_by_the_engine(group, index):
    group.rollouts[index].logprobs[2] = float("nan")


@pytest.mark.parametrize("breaks", [broken_by_the_model, broken_by_the_engine])
@pytest.mark.parametrize("old_logprobs", ["recompute", "rollout"])
def test_of_a_shared_row_only_the_broken_rollouts_are_dropped(
    broken_model, ranks, breaks, old_logprobs
):
    algorithm = {"prompts_per_update": 1, "kl_coefficient": 0.1, "old_logprobs": old_logprobs}
    config = make_config(broken_model, algorithm=algorithm)
    groups = [sound_group(f"0-{i}", lengths) for i, lengths in enumerate(([6, 5, 4, 7], [9, 3, 8]))]
    for group, index in ((groups[0], 1), (groups[0], 3), (groups[1], 0)):
        breaks(group, index)
    plan = make_plan(0, groups, 1)
    alone = [
        cut(update, ranks=1, tokens_per_micro_batch=128, shared_row_tokens=0)[0]
        for update in updates(plan)
    ]
    shared, single = (train_step(config, ranks, plan, groups, cut=c) for c in (None, alone))
    assert shared.step.rollouts_dropped == single.step.rollouts_dropped == 3
    assert shared.step.tokens_trained == single.step.tokens_trained == 6 + 4 + 3 + 8
    assert all(math.isfinite(value) for value in described(shared.step).values())
    for one, other in zip(shared.gradients, single.gradients, strict=True):
        assert relative_error(one, other) < 1e-5


def test_a_broken_prompt_drops_its_rollouts_and_leaves_the_other_prompts(broken_model, ranks):
    config = make_config(broken_model, algorithm={"prompts_per_update": 2})
    groups = [sound_group("0-0", [6, 5]), sound_group("0-1", [9, 3])]
    groups[0].prompt_token_ids[1] = BROKEN_TOKEN
    result = train_step(config, ranks, make_plan(0, groups, 2), groups)
    assert (result.step.rollouts_dropped, result.step.tokens_trained) == (2, 12)
    assert all(torch.isfinite(g).all() for g in result.gradients[0].values())


def test_a_gradient_that_is_not_finite_is_an_error_not_a_skipped_update(tiny_model, ranks, groups):
    result = train_step(make_config(tiny_model), ranks, make_plan(0, groups, 2), groups)
    weight = next(iter(result.policy.module.parameters()))
    loss = (weight.float() * float("inf")).sum() * 0.0
    result.policy.backward(loss, last=True)
    with pytest.raises(UpdateSkipped, match=r"not finite.* start a new run .*policies/v<N>"):
        result.policy.update(1e-3)


class PassingPolicy(RecordingPolicy):
    """Remembers at which beat each pass through the model began."""

    beats: list[float]
    passes: list[int]

    def log_probs(self, batch):
        self.passes.append(len(self.beats))
        return super().log_probs(batch)


def test_the_loop_beats_before_every_pass_and_every_update(tiny_model, ranks, groups):
    config = make_config(tiny_model)
    policy = PassingPolicy(config, ranks, dtype=torch.float32)
    policy.beats, policy.passes = [], []

    def clock():
        policy.beats.append(0.0)
        return 0.0

    train_step(
        config, ranks, make_plan(0, groups, 2), groups, policy=policy, heartbeat=Heartbeat(clock)
    )
    assert len(policy.passes) >= 6
    assert all(earlier < later for earlier, later in itertools.pairwise(policy.passes))
    assert policy.passes[0] > 0
    # The last pass, the update after it and the end of its phase.
    assert len(policy.beats) >= policy.passes[-1] + 2
