"""A Dockerfile as its instructions, as a builder reads it: no comments, continued lines joined."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVICES = ("buffer", "reward", "rollout", "trainer")


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction; `text` is what follows the word."""

    word: str
    text: str


def read(service: str) -> list[Instruction]:
    """The instructions of a service's Dockerfile, in order."""
    text = (ROOT / "services" / service / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    parts = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [Instruction(word=word, text=rest) for word, rest in parts]


def final_stage(service: str) -> list[Instruction]:
    """What makes the image itself: everything after the last FROM."""
    instructions = read(service)
    last = max(i for i, one in enumerate(instructions) if one.word == "FROM")
    return instructions[last:]


def environment(service: str) -> dict[str, str]:
    """The ENV of the image."""
    pairs = [one.text for one in final_stage(service) if one.word == "ENV"]
    return dict(pair.split("=", 1) for pair in " ".join(pairs).split())


def arguments(service: str) -> dict[str, str]:
    """Build arguments and their defaults."""
    given = [one.text for one in read(service) if one.word == "ARG" and "=" in one.text]
    return dict(one.split("=", 1) for one in given)
