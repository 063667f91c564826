"""A run's inputs that pass every check, small enough to copy and spoil, and the command itself."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

ROOT = Path(__file__).parents[2]

CONFIG = """\
[run]
name = "tiny"
steps = 4

[model]
path = "model"

[data]
path = "rows.jsonl"
prompt_column = "question"
answer_column = "answer"
verifier = "integer"

[sampling]
max_prompt_tokens = 16
max_response_tokens = 8

[algorithm]
group_size = 4
prompts_per_step = 2
prompts_per_update = 2
max_leases_per_step = 50

[optimiser]
learning_rate = 1e-5

[trainer]
tokens_per_micro_batch = 64
checkpoint_every_steps = 2

[rollout]
groups_in_flight = 2
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A config whose model directory and data set pass the checks (and could not be run)."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(model / "tokenizer.json"))
    settings = {"chat_template": "{{ messages[-1].content }}"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "tiny.toml"
    file.write_text(CONFIG)
    return file


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a finished command left."""

    status: int
    out: str
    err: str


@pytest.fixture
def dapod(tmp_path: Path) -> Callable[..., Said]:
    """Runs the command in a fresh directory; `environment` is added to the test's own."""

    def call(*arguments: object, environment: dict[str, str] | None = None) -> Said:
        done = subprocess.run(
            [sys.executable, "-m", "dapod.cli", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            capture_output=True,
            text=True,
            timeout=30,
        )
        return Said(status=done.returncode, out=done.stdout, err=done.stderr)

    return call
