"""One rank of a gradient test, under torchrun: trains every case; rank 0 leaves the gradients.

torchrun --nproc-per-node 2 -m tests.trainer.gradient_rank MODEL OTHER_MODEL OUTPUT

With two ranks the cases go round the ZeRO stages so that each normaliser and each overlong filter
meets each stage, shuffled, with and without shared rows, and each stage is trained both plainly and
with everything for long sequences.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from services.trainer.cut import SHARED_ROW_TOKENS
from services.trainer.logprobs import LOGITS_BYTES
from services.trainer.ranks import Ranks
from tests.trainer.gradient_cases import CASES, FILTERS, Layout, train_case
from tests.trainer.harness import VOCABULARY, described


def layout_of(number: int) -> Layout:
    turn = sum(divmod(number, len(FILTERS)))
    zero_stage, long = 1 + turn % 3, turn % 2 == 1
    return Layout(
        zero_stage=zero_stage,
        shared_row_tokens=(SHARED_ROW_TOKENS, 0)[number // 2 % 2],
        tokens_per_micro_batch=(81, 128, 4096)[number % 3],
        # Seven tokens in a chunk: two ranks have different numbers of chunks.
        logits_bytes=7 * 4 * VOCABULARY if long else LOGITS_BYTES,
        trainer={"gradient_checkpointing": long, "offload_optimiser": long and zero_stage == 2},
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
