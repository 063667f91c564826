"""One rank of a gradient test, under torchrun: trains a plan in fp32; rank 0 leaves the gradients.

torchrun --nproc-per-node 2 -m tests.trainer.gradient_rank MODEL TRAINER OUTPUT LOGITS_BYTES

TRAINER is the config's section in JSON.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from services.trainer.ranks import Ranks
from tests.trainer.doubles import make_group, make_plan
from tests.trainer.harness import RecordingPolicy, make_config, train_step

LENGTHS = ([1, 60, 3, 9], [40, 2, 2, 33], [5, 5, 5, 5], [64, 1, 17, 30])
VERDICTS = ([True, False, None, False], [True, True, False, False], [False, None, True, True])


def main(model: Path, trainer: dict[str, object], output: Path, logits_bytes: int) -> None:
    groups = [
        make_group(f"0-{i}", lengths, correct=VERDICTS[i % 3], prompt_tokens=3 + 4 * i)
        for i, lengths in enumerate(LENGTHS)
    ]
    config, ranks = make_config(model, trainer=trainer), Ranks()
    policy = RecordingPolicy(config, ranks, dtype=torch.float32, logits_bytes=logits_bytes)
    trained = train_step(config, ranks, make_plan(0, groups, 2), groups, policy=policy)
    if dist.get_rank() == 0:
        step = trained.step
        numbers = [
            step.loss,
            step.entropy_nats,
            step.mismatch_kl_nats,
            step.tokens_trained,
            step.grad_norm,
        ]
        tensors = {
            f"{update}/{name}": gradient
            for update, gradients in enumerate(trained.gradients)
            for name, gradient in gradients.items()
        }
        save_file(tensors | {"statistics": torch.tensor(numbers)}, output)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    dist.destroy_process_group()
