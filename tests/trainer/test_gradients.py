"""The gradient under every option of the loss: what the float64 reference says, whatever the cut.

Two ranks: tests/e2e/test_trainer.py.
"""

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dapod import algorithm as reference_of
from dapod.algorithm import carries_loss, group_advantages, is_counted
from services.trainer.cut import SHARED_ROW_TOKENS
from tests.trainer.gradient_cases import (
    CASES,
    FILTERS,
    NORMALISERS,
    Layout,
    case_config,
    make_groups,
    options,
    train_case,
)
from tests.trainer.harness import OF_THE_LIBRARIES, relative_error, write_tiny_model

pytestmark = OF_THE_LIBRARIES


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def train(tiny_model, other_model, ranks):
    """Trains a case under a layout; the plain layout of each case once."""

    def fresh(layout, **chosen):
        return train_case(tiny_model, other_model, ranks, chosen, layout)

    plain = functools.cache(functools.partial(fresh, Layout()))
    return lambda layout=None, **chosen: fresh(layout, **chosen) if layout else plain(**chosen)


LAYOUTS = st.builds(
    Layout,
    tokens_per_micro_batch=st.sampled_from([81, 100, 200, 4096]),
    shared_row_tokens=st.sampled_from([0, 60, SHARED_ROW_TOKENS]),
    zero_stage=st.sampled_from([0, 1, 2, 3]),
    seed=st.integers(0, 1000),
)


@settings(
    max_examples=16, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(NORMALISERS), st.sampled_from(FILTERS), LAYOUTS)
def test_the_gradients_of_both_updates_do_not_depend_on_the_layout(
    train, normaliser, overlong_filter, layout
):
    chosen = options(normaliser, overlong_filter)
    one, other = train(**chosen), train(layout, **chosen)
    assert len(one.gradients) == len(other.gradients) == 2
    for left, right in zip(one.gradients, other.gradients, strict=True):
        assert relative_error(left, right) < 1e-5


@functools.cache
def log_probs(directory):
    """(model, by group and rollout its log-probs) by plain transformers in fp32, one at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model, [
        [_of_response(model, group.prompt_token_ids, r.token_ids) for r in group.rollouts]
        for group in make_groups()[:2]
    ]


def _of_response(model, prompt_ids, response_ids):
    prompt, response = (torch.from_numpy(ids).long() for ids in (prompt_ids, response_ids))
    logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0]
    logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return logprobs.gather(1, response[:, None])[:, 0]


def reference_weights(settings, groups):
    """[group][rollout] of one update: 0 where it carries no loss."""
    choice = {"overlong_filter": settings.overlong_filter}
    kinds = [
        [{"judged": r.verdict.reward is not None, "truncated": r.truncated} for r in g.rollouts]
        for g in groups
    ]
    tokens = [
        [
            len(r.token_ids) * is_counted(**kind, **choice)
            for r, kind in zip(g.rollouts, of_group, strict=True)
        ]
        for g, of_group in zip(groups, kinds, strict=True)
    ]
    return [
        [w * carries_loss(**kind, **choice) for w, kind in zip(weights, of_group, strict=True)]
        for weights, of_group in zip(
            reference_of.NORMALISERS[settings.loss_normaliser](tokens, 64), kinds, strict=True
        )
    ]


def reference_loss(settings, now, start, rollout, advantage, frozen):
    """Of one token in float64, before the normaliser; `start` is the policy at the step's start."""
    recompute = settings.old_logprobs == "recompute"
    objective = reference_of.token_objective(
        now,
        start if recompute else rollout,
        advantage,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        dual_clip=settings.dual_clip,
    )
    cap = settings.importance_weight_cap
    return reference_of.token_loss(
        objective,
        importance_weight=reference_of.importance_weight(start, rollout, cap) if recompute else 1.0,
        kl=reference_of.reference_kl(now, frozen),
        kl_coefficient=settings.kl_coefficient,
    )


def slopes(settings, ours, rollout, advantage, theirs):
    """[T] the reference loss of each token by its log-prob: central differences."""
    step, found = 1e-5, []
    for now, sampled, frozen in zip(
        ours.tolist(), rollout.logprobs.tolist(), theirs.tolist(), strict=True
    ):
        up, down = (
            reference_loss(settings, now + d, now, sampled, advantage, frozen)
            for d in (step, -step)
        )
        found.append((up - down) / (2 * step))
    return torch.tensor(found)


@pytest.mark.parametrize("name", CASES)
def test_the_first_update_is_the_reference_in_float64(name, train, tiny_model, other_model):
    settings = case_config(tiny_model, CASES[name], Layout()).algorithm
    (model, ours), (_, theirs) = log_probs(tiny_model), log_probs(other_model)
    groups = make_groups()[:2]
    weights = reference_weights(settings, groups)
    surrogate = torch.zeros(())
    for g, group in enumerate(groups):
        rewards = [r.verdict.reward for r in group.rollouts]
        advantages = group_advantages(rewards, scale=settings.advantage_scale)
        for i, rollout in enumerate(group.rollouts):
            slope = slopes(settings, ours[g][i], rollout, advantages[i] or 0.0, theirs[g][i])
            surrogate = surrogate + weights[g][i] * (slope * ours[g][i]).sum()
    model.zero_grad()
    surrogate.backward(retain_graph=True)
    expected = {f"model.{n}": p.grad for n, p in model.named_parameters()}
    assert relative_error(expected, train(**CASES[name]).gradients[0]) < 1e-5


def test_the_reference_model_costs_nothing_where_there_is_no_kl_term(train):
    without = train(**CASES["prompt, off"] | {"kl_coefficient": 0.0})
    assert without.step.reference_kl_nats is None
    assert train(**CASES["prompt, off"]).step.reference_kl_nats > 0.0


def test_every_option_changes_the_gradient(train):
    plain = train(**options("prompt", "off")).gradients[0]
    others = [
        options("token", "off"),
        options("sequence", "off"),
        options("constant", "off"),
        options("prompt", "excluded"),
        options("prompt", "counted"),
        options("prompt", "off") | {"dual_clip": 0.0},
        options("prompt", "off") | {"kl_coefficient": 0.0},
        options("prompt", "off") | {"advantage_scale": "none"},
    ]
    for other in others:
        assert relative_error(plain, train(**other).gradients[0]) > 1e-3, other
