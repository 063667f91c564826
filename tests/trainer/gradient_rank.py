"""One rank of a gradient test, under torchrun: trains every case; rank 0 leaves the gradients.

torchrun --nproc-per-node 2 -m tests.trainer.gradient_rank MODEL OTHER_MODEL OUTPUT

With two ranks the cases go round the ZeRO stages so that each normaliser and each overlong filter
meets each stage, shuffled, with shared rows in every other case.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from services.trainer.cut import SHARED_ROW_TOKENS
from services.trainer.ranks import Ranks
from tests.trainer.gradient_cases import CASES, FILTERS, Layout, train_case
from tests.trainer.harness import described


def layout_of(number: int) -> Layout:
    normaliser, overlong_filter = divmod(number, len(FILTERS))
    return Layout(
        zero_stage=1 + (normaliser + overlong_filter) % 3,
        shared_row_tokens=(SHARED_ROW_TOKENS, 0)[number % 2],
        tokens_per_micro_batch=(81, 128, 4096)[number % 3],
        seed=number,
    )


def main(model: Path, other_model: Path, output: Path) -> None:
    ranks, tensors = Ranks(), {}
    for number, (name, algorithm) in enumerate(CASES.items()):
        layout = Layout() if ranks.size == 1 else layout_of(number)
        trained = train_case(model, other_model, ranks, algorithm, layout)
        for update, gradients in enumerate(trained.gradients):
            for parameter, gradient in gradients.items():
                tensors[f"{name}/{update}/{parameter}"] = gradient
        tensors[f"{name}/statistics"] = torch.tensor(list(described(trained.step).values()))
    if ranks.leads:
        save_file(tensors, output)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
    dist.destroy_process_group()
