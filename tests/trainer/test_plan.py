"""What `dapod plan` says of the trainer is what it does: dapod cannot import it to look."""

import gc
import threading

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from prometheus_client import CollectorRegistry

from dapod.heartbeat import Heartbeat
from dapod.plan import storage, trainer_memory
from dapod.plan.model_shape import shape_of
from services.trainer import checkpoint, logprobs, train
from services.trainer.metrics import TrainerMetrics
from services.trainer.phases import Phases
from services.trainer.policy import Policy, engine_settings
from services.trainer.updates import Updates
from tests.trainer.doubles import make_group, make_plan
from tests.trainer.harness import OF_THE_LIBRARIES, make_config, write_tiny_model

pytestmark = OF_THE_LIBRARIES

GROUPS = [make_group(f"0-{i}", [5, 3, 9, 2], correct=[True, False, False, True]) for i in range(4)]


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeeds_buffers_are_as_large_as_planned(stage: int, tiny_model) -> None:
    config = make_config(tiny_model, trainer={"zero_stage": stage})
    zero = DeepSpeedZeroConfig(**engine_settings(config, 2, torch.bfloat16)["zero_optimization"])
    assert zero.reduce_bucket_size == trainer_memory.REDUCE_BUCKET
    assert zero.max_live_parameters == trainer_memory.GATHERED_PARAMETERS


def test_a_chunk_of_logits_is_as_large_as_planned() -> None:
    assert logprobs.LOGITS_BYTES == trainer_memory.LOGITS_BYTES


def test_as_many_policies_and_checkpoints_are_kept_as_planned() -> None:
    assert train.NEWEST_POLICIES + 1 == storage.POLICIES_KEPT
    assert checkpoint.KEEP + 1 == storage.CHECKPOINTS_KEPT


def tensors() -> dict[int, torch.UntypedStorage]:
    """The memory of every tensor in this process by address, DeepSpeed's bucket left out."""
    gc.collect()
    found = [t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)]
    found += [t.grad for t in found if t.is_leaf and t.grad is not None]
    storages = [t.untyped_storage() for t in found]
    bucket = 2 * trainer_memory.REDUCE_BUCKET
    return {s.data_ptr(): s for s in storages if s.nbytes() != bucket}


class CountingPolicy(Policy):
    """Remembers how many bytes of tensors there are before each update, besides `others`."""

    others: dict[int, torch.UntypedStorage]
    held: list[int]

    def update(self, learning_rate: float) -> float:
        found = tensors()
        self.held.append(sum(found[at].nbytes() for at in found.keys() - self.others.keys()))
        return super().update(learning_rate)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_weights_gradients_and_optimiser_are_what_a_real_engine_holds(stage, ranks, tmp_path):
    directory = write_tiny_model(tmp_path / "model", hidden_size=64, intermediate_size=1024)
    config = make_config(directory, trainer={"zero_stage": stage})
    others = tensors()  # kept alive, so that no address is used again
    policy = CountingPolicy(config, ranks)
    policy.others, policy.held = others, []
    metrics = TrainerMetrics(CollectorRegistry())
    updates = Updates(
        config=config,
        policy=policy,
        ranks=ranks,
        phases=Phases(metrics, Heartbeat(), {}),
        metrics=metrics,
        stop=threading.Event(),
    )
    plan = make_plan(0, GROUPS, 2)
    updates.run(plan, updates.cut(plan), {group.group_id: group for group in GROUPS})

    shape = shape_of(policy.module.model.config.to_dict(), "tiny")
    memory = trainer_memory.trainer_memory(config, shape, capacity_bytes=1, reserve_bytes=0)
    planned = {term.name: term.bytes for term in memory.terms}
    states = planned["weights"] + planned["gradients"] + planned["optimiser states"]
    if stage == 0:
        states -= 2 * shape.parameters  # the bf16 copies, which live during a pass only
    # The second update: AdamW makes its moments in the first.
    assert policy.held[1] == pytest.approx(states, rel=0.03)
