"""A model directory that tokenises (and could not be run) with nine problems, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from tokenizers import Tokenizer, models, pre_tokenizers

FLAGS = ("--verifier", "integer", "--max-response-tokens", "8", "--set", "data.chat=false")
"""What the data set of `rows` needs."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "tiny"
    write_model(directory)
    return directory


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Of the nine the answer 12 is right for three."""
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"what is problem {n} ?", "answer": str(10 + n % 3)} for n in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_model(directory: Path, weights: bytes = b"") -> None:
    words = ["[UNK]", "what", "is", "problem", "?", *map(str, range(100))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    held = {"weights": np.frombuffer(weights, dtype=np.uint8)}
    (directory / "model.safetensors").write_bytes(save(held))


def write_run(directory: Path, rows: Path, *policies: str) -> None:
    """A run directory with policies, the last one linked as its number's newest."""
    directory.mkdir()
    (directory / "run.json").write_text("{}")
    (directory / "config.toml").write_text(
        f"""
        [run]
        name = "tiny"
        [data]
        path = "{rows}"
        chat = false
        verifier = "integer"
        [sampling]
        max_prompt_tokens = 32
        max_response_tokens = 16
        [rollout]
        groups_in_flight = 3
        """
    )
    for policy in policies:
        write_model(directory / "policies" / policy, policy.encode())
        link = directory / "policies" / policy.partition("-")[0]
        link.unlink(missing_ok=True)
        link.symlink_to(policy)
