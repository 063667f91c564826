"""What a published policy answers to questions of the quickstart, asked by a process of its own."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from dapod import config as configuration
from dapod.cli.fleet import DEFAULTS
from dapod.dataset import read_rows
from services.reward.verifiers.integer import integer
from tests.e2e.live_run import QUICKSTART

_SECONDS = 240


def accuracy(policy: Path, *, questions: int, repeat: int) -> float:
    """Share of correct answers at temperature 1, judged by the quickstart's own verifier."""
    config = configuration.load(QUICKSTART)
    rows = random.Random(1).sample(read_rows(config.data), questions)
    request = {
        "messages": [row.message for row in rows],
        "max_new_tokens": config.sampling.max_response_tokens,
        "repeat": repeat,
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("ask_policy.py")), str(policy)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**DEFAULTS, **os.environ},
        timeout=_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[list[str]] = json.loads(done.stdout)
    assert [len(texts) for texts in answers] == [repeat] * questions
    correct = [
        integer(text, row.answer).correct is True
        for row, texts in zip(rows, answers, strict=True)
        for text in texts
    ]
    return sum(correct) / len(correct)
