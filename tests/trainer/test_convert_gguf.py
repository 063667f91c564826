"""What the conversion gives is the model it read, in a form that can be saved."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from services.trainer.convert_gguf import fresh_copy


def tiny() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 123.0},
            tie_word_embeddings=True,
        )
    )


def test_every_weight_is_copied_in_bf16_and_the_head_stays_tied(tmp_path: Path) -> None:
    loaded = tiny()
    fresh_copy(loaded).save_pretrained(tmp_path)
    saved = LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert saved.config.rope_parameters["rope_theta"] == 123.0
    assert saved.lm_head.weight is saved.model.embed_tokens.weight
    for name, weight in loaded.state_dict().items():
        assert torch.equal(saved.state_dict()[name], weight.to(torch.bfloat16)), name
