"""A policy directory in somebody else's hands: plain transformers, without dapod.

    echo '{"messages": ["What is 2 + 2?"], "max_new_tokens": 16, "repeat": 2}' \
        | python ask_policy.py DIRECTORY

Samples at temperature 1 and prints a JSON list with the list of answers to each message.
"""

import json
import sys


def main(directory: str) -> None:
    request = json.load(sys.stdin)
    json.dump(answers(directory, request), sys.stdout)


def answers(directory, request):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
    texts = [_prompt(tokenizer, message) for message in request["messages"]]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        output = model.generate(
            **batch,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            num_return_sequences=request["repeat"],
            max_new_tokens=request["max_new_tokens"],
            pad_token_id=tokenizer.pad_token_id,
        )
    new = output[:, batch["input_ids"].shape[1] :]
    flat = tokenizer.batch_decode(new, skip_special_tokens=True)
    repeat = request["repeat"]
    return [flat[i : i + repeat] for i in range(0, len(flat), repeat)]


def _prompt(tokenizer, message):
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
