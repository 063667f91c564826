"""What `dapod plan` says of the trainer is what the trainer does: dapod cannot import it to look."""

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from dapod.plan import storage, trainer_memory
from services.trainer import checkpoint, logprobs, train
from services.trainer.policy import engine_settings
from tests.trainer.harness import make_config


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeeds_buffers_are_as_large_as_planned(stage: int, tiny_model) -> None:
    import torch

    config = make_config(tiny_model, trainer={"zero_stage": stage})
    zero = DeepSpeedZeroConfig(**engine_settings(config, 2, torch.bfloat16)["zero_optimization"])
    assert zero.reduce_bucket_size == trainer_memory.REDUCE_BUCKET
    assert zero.max_live_parameters == trainer_memory.GATHERED_PARAMETERS


def test_gradients_accumulate_and_travel_in_fp32(tiny_model) -> None:
    import torch

    settings = engine_settings(make_config(tiny_model), 2, torch.bfloat16)
    assert settings["data_types"]["grad_accum_dtype"] == "fp32"
    assert settings["communication_data_type"] == "fp32"


def test_a_chunk_of_logits_is_as_large_as_planned() -> None:
    assert logprobs.LOGITS_BYTES == trainer_memory.LOGITS_BYTES


def test_as_many_policies_and_checkpoints_are_kept_as_planned() -> None:
    assert train.NEWEST_POLICIES + 1 == storage.POLICIES_KEPT
    assert checkpoint.KEEP + 1 == storage.CHECKPOINTS_KEPT
