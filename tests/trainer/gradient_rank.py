"""One rank of a gradient test, under torchrun: trains a plan in fp32; rank 0 leaves the gradients.

torchrun --nproc-per-node 2 -m tests.trainer.gradient_rank MODEL ZERO_STAGE OUTPUT
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from services.trainer.ranks import Ranks
from tests.trainer.doubles import make_group, make_plan
from tests.trainer.harness import make_config, train_step

LENGTHS = ([1, 60, 3, 9], [40, 2, 2, 33], [5, 5, 5, 5], [64, 1, 17, 30])
VERDICTS = ([True, False, None, False], [True, True, False, False], [False, None, True, True])


def main(model: Path, zero_stage: int, output: Path) -> None:
    groups = [
        make_group(f"0-{i}", lengths, correct=VERDICTS[i % 3], prompt_tokens=3 + 4 * i)
        for i, lengths in enumerate(LENGTHS)
    ]
    config = make_config(model, trainer={"zero_stage": zero_stage})
    trained = train_step(config, Ranks(), make_plan(0, groups, 2), groups)
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
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    dist.destroy_process_group()
