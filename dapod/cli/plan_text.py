"""A `RunPlan` as text for people and as JSON for programs; the caller says what does not fit."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from dapod.plan import RunPlan

_GIB = 2**30
_WIDTH = 100


def as_text(plan: RunPlan) -> str:
    """A page of plain text, the same for the same input."""
    return "\n".join(line.rstrip() for line in _lines(plan)) + "\n"


def _lines(plan: RunPlan) -> Iterator[str]:
    yield from _machines(plan)
    yield from _trainer(plan)
    yield from _rollout(plan)
    yield from _disks(plan)
    yield from _seconds(plan)
    yield from _assumptions(plan)
    for note in plan.notes:
        yield ""
        yield from textwrap.wrap(f"note: {note}", _WIDTH, break_on_hyphens=False)


def _machines(plan: RunPlan) -> Iterator[str]:
    machines, split, config = plan.machines, plan.split, plan.config
    gpu = machines.gpu
    yield f"run {config.run.name} on {machines.nodes} × {machines.gpus_per_node} {gpu.name}"
    yield (
        f"  {gpu.name}: {gpu.memory_bytes / 1e9:.0f} GB, {gpu.bf16_flops / 1e12:.0f} TFLOPS bf16, "
        f"{gpu.memory_bytes_per_second / 1e12:.3g} TB/s ({gpu.source})"
    )
    yield f"  model: {plan.shape.parameters:,} parameters (P), {plan.shape.layers} layers"
    if split.shared:
        yield "  trainer and rollout share the GPU and take turns"
    else:
        nodes = "one node" if split.trainer_nodes == 1 else f"{split.trainer_nodes} nodes"
        yield (
            f"  {split.trainer_gpus} GPU(s) train (trainer.ranks, on {nodes}), "
            f"{split.rollout_gpus} sample: {split.rollout_replicas} engine(s) of "
            f"{split.tensor_parallel} GPU(s) each"
        )


def _trainer(plan: RunPlan) -> Iterator[str]:
    trainer = plan.trainer
    yield from ("", "one trainer GPU")
    for term in trainer.terms:
        yield _row(term.name, _gib(term.bytes), term.how)
    yield _row("all", _gib(trainer.bytes), f"of {_gib(trainer.capacity_bytes)}")
    yield _row("at the start", _gib(trainer.loading_bytes), "for a moment: the whole model")
    yield _row(
        "the node's memory",
        _gib(trainer.host_bytes),
        "a copy for each rank, later what is offloaded",
    )


def _rollout(plan: RunPlan) -> Iterator[str]:
    rollout, ratio = plan.rollout, plan.config.rollout.gpu_memory_ratio
    yield from ("", "one GPU of an engine")
    yield _row("weights", _gib(rollout.weights_bytes), "bf16 over rollout.tensor_parallel GPUs")
    one_pass = f"of {rollout.pass_tokens} tokens, and the sampler's logits"
    yield _row("one pass", _gib(rollout.pass_bytes), one_pass)
    yield _row("reserve", _gib(rollout.reserve_bytes), "assumed")
    per_token = f"{rollout.cache_bytes_per_token:,.0f} bytes a token"
    yield _row("key-value cache", _gib(rollout.cache_bytes), per_token)
    yield _row("all", _gib(rollout.given_bytes), f"gpu_memory_ratio {ratio:g} of the GPU")
    yield from ("", "one engine")
    yield _row("the cache holds", f"{rollout.cache_tokens:,}", "tokens")
    yield _row("", f"{rollout.full_length_rollouts:,}", "rollouts of full length")
    asked = f"rollouts of mean length, {rollout.asked_rollouts:,} asked for at most"
    yield _row("it samples", f"{rollout.concurrent_rollouts:,}", asked)
    if plan.decoding:
        milliseconds = plan.decoding.seconds_per_pass * 1e3
        how = f"{milliseconds:.1f} ms a pass, bound by {plan.decoding.bound}"
        yield _row("tokens a second", f"{plan.decoding.tokens_per_second:,.0f}", how)


def _disks(plan: RunPlan) -> Iterator[str]:
    redis, storage = plan.redis, plan.storage
    yield from ("", "Redis, payload of groups")
    yield _row("a step", _gib(redis.step_bytes), f"at most; {_gib(redis.mean_step_bytes)} at means")
    yield _row("all at once", _gib(redis.bytes), f"{redis.live_steps} steps: least maxmemory")
    yield from ("", "storage")
    yield _row("a publish", _gib(storage.publish_bytes), "bf16: 2 P")
    yield _row("policies kept", _gib(storage.policies_bytes), "3, and those that pods have loaded")
    yield _row("a checkpoint", _gib(storage.checkpoint_bytes), "the trainer's own volume")
    yield _row("checkpoints kept", _gib(storage.checkpoints_bytes), "2, and one being written")
    if plan.seconds:
        how = f"{plan.steps_per_day:.1f} publishes, each read by every rollout"
        yield _row("written a day", _gib(plan.written_per_day), how)
        yield _row("read a day", _gib(plan.read_per_day), "")


def _seconds(plan: RunPlan) -> Iterator[str]:
    seconds, work = plan.seconds, plan.work
    if seconds is None:
        return
    yield from ("", "seconds of a step")
    sampled = f"{work.rollouts_sampled:,.0f} rollouts, {work.tokens_sampled / 1e6:,.1f} M tokens"
    yield _row("sample", _s(seconds.sample), sampled)
    yield _row("verify", _s(seconds.verify), "by one reward pod, beside the sampling")
    yield _row("change over", _s(seconds.change_over), "to the new policy: drain, read")
    flops = f"{work.old_logprob_flops:.2g} FLOP"
    yield _row("old log-probs", _s(seconds.old_logprobs), flops)
    trained = f"{work.training_flops:.2g} FLOP, {plan.config.updates_per_step} update(s)"
    yield _row("update", _s(seconds.update), trained)
    yield _row("publish", _s(seconds.publish), "write, read back for checksums")
    share = f"{seconds.wait / seconds.step:.0%} of a step"
    yield _row("the trainer waits", _s(seconds.wait), share)
    how = f"{plan.steps_per_day:.1f} a day, {_days(plan)} for run.steps = {plan.config.run.steps}"
    yield _row("a step", _s(seconds.step), how)
    yield _row("engines needed", *_engines(plan))


def _engines(plan: RunPlan) -> tuple[str, str]:
    assert plan.seconds is not None
    if plan.seconds.stops_waiting is not None:
        return f"{plan.seconds.stops_waiting}", "for a trainer that does not wait"
    if plan.seconds.turns:
        return "-", "trainer and rollouts take turns: it always waits"
    return "-", "the change-over or the verifying alone takes longer than the trainer"


def _days(plan: RunPlan) -> str:
    assert plan.seconds is not None
    seconds = plan.config.run.steps * plan.seconds.step
    return f"{seconds / 86400:.1f} days" if seconds > 86400 else f"{seconds / 3600:.1f} hours"


def _assumptions(plan: RunPlan) -> Iterator[str]:
    yield from ("", "assumed, not measured (--assume name=value)")
    for name, value, why in plan.assumed.items():
        yield _row(name, f"{value:g}", why)


def _row(name: str, value: str, how: str) -> str:
    return f"  {name:<24} {value:>11}  {how}"


def _gib(size: float) -> str:
    return f"{size / _GIB:,.2f} GiB" if size >= _GIB / 10 else f"{size / 2**20:,.1f} MiB"


def _s(seconds: float) -> str:
    return f"{seconds:,.1f} s"


def as_json(plan: RunPlan) -> dict[str, Any]:
    """The same numbers unrounded: bytes, seconds, tokens."""
    trainer, rollout, split = plan.trainer, plan.rollout, plan.split
    return {
        "fits": not plan.refusals,
        "refusals": list(plan.refusals),
        "notes": list(plan.notes),
        "gpu": plan.machines.gpu.name,
        "nodes": plan.machines.nodes,
        "gpus_per_node": plan.machines.gpus_per_node,
        "parameters": plan.shape.parameters,
        "split": {
            "trainer_gpus": split.trainer_gpus,
            "trainer_nodes": split.trainer_nodes,
            "rollout_replicas": split.rollout_replicas,
            "tensor_parallel": split.tensor_parallel,
            "shared": split.shared,
            "idle_gpus": split.idle_gpus,
        },
        "trainer_gpu_bytes": {
            "terms": {term.name: term.bytes for term in trainer.terms},
            "all": trainer.bytes,
            "capacity": trainer.capacity_bytes,
            "at_the_start": trainer.loading_bytes,
        },
        "trainer_node_bytes": trainer.host_bytes,
        "rollout_gpu_bytes": {
            "weights": rollout.weights_bytes,
            "one_pass": rollout.pass_bytes,
            "reserve": rollout.reserve_bytes,
            "cache": rollout.cache_bytes,
            "all": rollout.given_bytes,
        },
        "engine": {
            "cache_tokens": rollout.cache_tokens,
            "full_length_rollouts": rollout.full_length_rollouts,
            "concurrent_rollouts": rollout.concurrent_rollouts,
            "tokens_per_second": plan.decoding.tokens_per_second if plan.decoding else None,
        },
        "redis_bytes": {"step": plan.redis.step_bytes, "all": plan.redis.bytes},
        "storage_bytes": {
            "publish": plan.storage.publish_bytes,
            "policies": plan.storage.policies_bytes,
            "checkpoint": plan.storage.checkpoint_bytes,
            "checkpoints": plan.storage.checkpoints_bytes,
            "written_per_day": plan.written_per_day,
            "read_per_day": plan.read_per_day,
        },
        "seconds": _json_seconds(plan),
        "assumed": {name: value for name, value, _ in plan.assumed.items()},
    }


def _json_seconds(plan: RunPlan) -> dict[str, Any] | None:
    seconds = plan.seconds
    if seconds is None:
        return None
    return {
        "sample": seconds.sample,
        "verify": seconds.verify,
        "change_over": seconds.change_over,
        "old_logprobs": seconds.old_logprobs,
        "update": seconds.update,
        "publish": seconds.publish,
        "wait": seconds.wait,
        "step": seconds.step,
        "engines_needed": seconds.stops_waiting,
    }
