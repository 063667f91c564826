"""The real engine as tests use it: policies to load, samples, and what they should have been."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dapod.policy_store import PolicyStore
from services.rollout.engine import Output, SamplingRequest
from services.rollout.policies import PolicyReader
from services.rollout.vllm_engine import VllmEngine

MEAN_ERROR, LARGEST_ERROR = 0.06, 0.6
"""Nats between a program that computes in bf16 and one in float32, at temperature 1. Logits of 16
to 32 lie 0.125 apart in bf16, so rounding them alone errs by 0.03 on average; the layers add
theirs. Measured here: mean 0.03 to 0.04."""
MEAN_ERROR_OF_TWO = 2**0.5 * MEAN_ERROR
"""Between two programs in bf16: independent errors add in squares. Measured: 0.04 to 0.05."""
QUESTION = "What is 7 + 5? Reply with only the number."


@dataclass(kw_only=True)
class Bench:
    """The engine under test, the store it reads and the prompt of all tests."""

    engine: VllmEngine
    store: PolicyStore
    reader: PolicyReader
    prompt: np.ndarray
    start_seconds: float
    requests: int = 0

    async def sample(self, temperature: float = 1.0, rollouts: int = 8) -> tuple[Output, ...]:
        self.requests += 1
        return await self.engine.sample(
            SamplingRequest(
                request_id=f"g{self.requests}",
                prompt_token_ids=self.prompt,
                rollouts=rollouts,
                temperature=temperature,
                top_p=1.0,
                max_response_tokens=16,
            )
        )

    async def in_flight(self) -> None:
        """Waits until vLLM has taken the request that was just begun."""
        async with asyncio.timeout(30):
            while not self.engine._llm.get_num_unfinished_requests():
                await asyncio.sleep(0.001)


def write_policy(model: Path, directory: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    for file in model.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy(file, directory)
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def halve_the_norm(tensors: dict[str, Any]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"] / 2


def question_tokens(model: Path) -> np.ndarray:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = [{"role": "user", "content": QUESTION}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def differences_to_transformers(
    directory: Path, prompt: np.ndarray, outputs: tuple[Output, ...], temperature: float = 1.0
) -> np.ndarray:
    """|engine's log-prob - transformers' own in float32| of every sampled token."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    differences = []
    for output in outputs:
        response = output.rollout.token_ids
        tokens = torch.tensor(np.concatenate([prompt, response])[None], dtype=torch.long)
        with torch.no_grad():
            logits = model(tokens).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits / temperature, -1).numpy()
        wanted = logprobs[np.arange(len(response)), response]
        differences.append(np.abs(wanted - output.rollout.logprobs))
    return np.concatenate(differences)
