"""What several models answer to the same conversations, sampled in plain transformers.

    python -m services.trainer.compare MODEL... <<END
    {"conversations": [[{"role": "user", "content": "2 + 2?"}]], "chat": true,
     "max_new_tokens": 16, "temperature": 1, "seed": 0}
    END

For people's eyes at the end of a run, not a measurement: a few questions, one answer each. Sampled
as in training, since that is what training changes: greedily even the quickstart's first policy is
mostly right. Prints JSON: for each model the list of its answers. It also shows that a published
policy loads without dapod.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

Conversation = list[dict[str, str]]
"""Messages with `role` and `content`."""


def main(arguments: list[str]) -> int:
    """Reads the request from standard input."""
    request = json.load(sys.stdin)
    with torch.inference_mode():
        answers = [answer(Path(directory), request) for directory in arguments]
    json.dump(answers, sys.stdout)
    return 0


def answer(directory: Path, request: dict[str, Any]) -> list[str]:
    """One model's answers, special tokens left out."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    model = model.to(device).eval()
    prompts = encode(tokenizer, request["conversations"], chat=request["chat"]).to(device)
    torch.manual_seed(request["seed"])
    outputs = model.generate(
        **prompts,
        do_sample=True,
        temperature=request["temperature"],
        top_k=0,  # the whole distribution, as in training
        top_p=1.0,
        max_new_tokens=request["max_new_tokens"],
        pad_token_id=tokenizer.pad_token_id,
    )
    answers = outputs[:, prompts["input_ids"].shape[1] :]
    texts: list[str] = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return texts


def encode(tokenizer: Any, conversations: list[Conversation], *, chat: bool) -> Any:
    """Token ids [conversations, tokens], padded on the left, with the chat template if asked."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    texts = [
        chat_text(tokenizer, turns) if chat else turns[-1]["content"] for turns in conversations
    ]
    return tokenizer(
        texts,
        add_special_tokens=not chat,  # the template has them already
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


def chat_text(tokenizer: Any, conversation: Conversation) -> str:
    """The conversation in the model's own chat template, up to where its answer begins."""
    text: str = tokenizer.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=True
    )
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
