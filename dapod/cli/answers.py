"""The first and the last policy's answers to the same questions, for the end of a run.

They are computed by a process of their own (`services.trainer.compare`): this package imports no
torch.
"""

import json
import random
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dapod.cli.guard import Guard
from dapod.cli.processes import TOKEN
from dapod.config import RunConfig
from dapod.dataset import Row, read_rows

QUESTIONS = 6
_DEADLINE_SECONDS = 180.0
_LARGEST_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question, answered twice."""

    question: str
    key: str
    first: str
    last: str


class NoAnswers(RuntimeError):
    """They could not be had; the message says why."""


def compare(config: RunConfig, last: Path, environment: Mapping[str, str]) -> list[Answer]:
    """Asks the base model and `last`, sampling as in training. Raises `NoAnswers`."""
    first = Path(config.model.path)
    size = sum(file.stat().st_size for file in first.glob("*.safetensors"))
    if size > _LARGEST_BYTES:
        raise NoAnswers(f"the model takes {size >> 30} GiB, too much for a quick look")
    rows = questions(config)
    request = {
        "conversations": [
            [{"role": turn.role, "content": turn.content} for turn in row.messages] for row in rows
        ],
        "chat": config.data.chat,
        "max_new_tokens": config.sampling.max_response_tokens,
        "temperature": config.sampling.temperature,
        "seed": config.run.seed,
    }
    first_texts, last_texts = _ask([first, last], request, environment)
    return [
        Answer(question=row.message, key=row.answer, first=before, last=after)
        for row, before, after in zip(rows, first_texts, last_texts, strict=True)
    ]


def questions(config: RunConfig) -> list[Row]:
    """A few rows of the data set, the same ones for the same seed."""
    rows = read_rows(config.data)
    return random.Random(config.run.seed).sample(rows, min(QUESTIONS, len(rows)))


def _ask(
    models: list[Path], request: dict[str, object], environment: Mapping[str, str]
) -> list[list[str]]:
    command = [sys.executable, "-m", "services.trainer.compare", *map(str, models)]
    token = uuid.uuid4().hex
    try:
        with Guard(token):
            done = subprocess.run(
                command,
                input=json.dumps(request),
                capture_output=True,
                text=True,
                env={**environment, TOKEN: token},
                timeout=_DEADLINE_SECONDS,
            )
    except subprocess.TimeoutExpired as error:
        raise NoAnswers(f"no answers within {_DEADLINE_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise NoAnswers((done.stderr.strip().splitlines() or ["no reason given"])[-1])
    texts: list[list[str]] = json.loads(done.stdout)
    return texts
