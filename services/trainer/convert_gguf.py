"""Turn a Llama-architecture GGUF file into a Hugging Face model directory with bf16 safetensors.

    python -m services.trainer.convert_gguf MODEL.gguf DIRECTORY

Not a general converter: it exists because a real pretrained model can be had from a package index
as a quantised GGUF, and what vLLM and DeepSpeed share is the Hugging Face layout. A program of its
own, because `dapod` (which calls it) imports no torch.

    GGUF ──transformers──► dequantised weights ──copy──► a fresh LlamaForCausalLM ──► safetensors
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

END_OF_TURN = "<|im_end|>"


def convert(source: Path, directory: Path) -> None:
    """Write config, generation config, tokenizer and weights of `source` into `directory`."""
    loaded: Any = LlamaForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    tokenizer = load_tokenizer(source, loaded.config.max_position_embeddings)
    model = fresh_copy(loaded)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def load_tokenizer(source: Path, context_tokens: int) -> Any:
    """The tokenizer inside `source`, checked to be one of an instruct model."""
    tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if tokenizer.eos_token != END_OF_TURN or not tokenizer.chat_template:
        raise ValueError(
            f"{source.name} is not a ChatML instruct model: its end token is "
            f"{tokenizer.eos_token!r} (needed: {END_OF_TURN!r}), its chat template "
            f"{'present' if tokenizer.chat_template else 'missing'}"
        )
    tokenizer.model_max_length = context_tokens
    return tokenizer


def fresh_copy(loaded: Any) -> Any:
    """The same weights in a model that can be saved: one read from a GGUF refuses to be."""
    described = {k: v for k, v in loaded.config.to_dict().items() if k not in _OF_THE_GGUF}
    model: Any = LlamaForCausalLM(LlamaConfig(**described))
    model.load_state_dict(loaded.state_dict())  # strict: a missing tensor must not stay random
    model.tie_weights()
    return model.to(torch.bfloat16)


_OF_THE_GGUF = {"_name_or_path", "_model_name_or_path", "quantization_config", "dtype"}


def main(argv: list[str]) -> int:
    """Parse the two paths and convert."""
    parser = argparse.ArgumentParser(prog="convert_gguf", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args(argv)
    convert(arguments.source, arguments.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
