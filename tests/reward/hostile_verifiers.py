"""Verifiers that misbehave; a pool loads them as "python:hostile_verifiers:<function>".

`answer` tells them what to do where they need telling: a path, usually.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from services.reward.verifiers.judgement import UNPARSED, Judgement


def honest(response: str, answer: str) -> Judgement:
    return Judgement(correct=response == answer, extracted=response)


def mute(response: str, answer: str) -> Judgement:
    return UNPARSED


def hang(response: str, answer: str) -> Judgement:
    while True:
        pass


def hang_in_c(response: str, answer: str) -> Judgement:
    """Exponential backtracking: never returns to Python, so no thread could help."""
    re.match(r"(a+)+$", "a" * 60 + "b")
    raise AssertionError("unreachable")


def hang_if_told(response: str, answer: str) -> bool:
    if response == "hang":
        hang(response, answer)
    return True


def touch_and_hang(response: str, answer: str) -> Judgement:
    Path(answer).touch()
    return hang_in_c(response, answer)


def start(response: str, answer: str) -> Judgement:
    """Starts a process that goes on, tells its id in the file `answer`, and ends as it is told."""
    if response == "move":
        os.setpgid(0, os.getpgid(os.getppid()))  # out of its own group
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(answer).write_text(f"{started.pid}\n")
    if response == "leave":
        os._exit(3)
    if response == "hang":
        hang(response, answer)
    return Judgement(correct=True, extracted=str(started.pid))


def hoard(response: str, answer: str) -> Judgement:
    hoarded = []
    while True:
        hoarded.append(bytearray(1 << 20))


def leave(response: str, answer: str) -> Judgement:
    os._exit(3)


def leave_once(response: str, answer: str) -> Judgement:
    """Dies unless the file `answer` is there, and puts it there."""
    seen = Path(answer).exists()
    Path(answer).touch()
    if not seen:
        os._exit(3)
    return Judgement(correct=True, extracted=str(os.getpid()))


def refuse(response: str, answer: str) -> Judgement:
    raise RuntimeError("no idea " + "x" * 100_000)


def refuse_loudly(response: str, answer: str) -> Judgement:
    """As math-verify's own time-out does."""
    raise BaseException("not even an Exception")


def chatter(response: str, answer: str) -> Judgement:
    for _ in range(64):
        print("x" * 100_000)
        print("x" * 100_000, file=sys.stderr)
    return Judgement(correct=True, extracted="x" * 10_000_000)


def forge(response: str, answer: str) -> Judgement:
    """Floods every descriptor it can find, the socket among them."""
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, b"x" * 200_000)
        except OSError:
            continue
    return Judgement(correct=True, extracted="")


def nonsense(response: str, answer: str) -> Judgement:
    return Judgement(correct="yes", extracted="1")  # type: ignore[arg-type]


def surrogate(response: str, answer: str) -> Judgement:
    """As a verifier that reads JSON comes to it."""
    text = json.loads('"12\\ud800"')
    if response == "raise":
        raise ValueError(text)
    return Judgement(correct=True, extracted=text)


def score(response: str, answer: str) -> float:
    return 0.5


def where(response: str, answer: str) -> Judgement:
    return Judgement(correct=True, extracted=str(os.getpid()))


def parent(response: str, answer: str) -> Judgement:
    return Judgement(correct=True, extracted=str(os.getppid()))


def gate(response: str, answer: str) -> Judgement:
    """Judges once the file `answer` is there."""
    while not Path(answer).exists():
        time.sleep(0.005)
    return Judgement(correct=True, extracted="open")


NAMES = (
    *(
        "honest",
        "mute",
        "hang",
        "hang_in_c",
        "hang_if_told",
        "touch_and_hang",
        "start",
        "hoard",
        "leave",
        "leave_once",
    ),
    *(
        "refuse",
        "refuse_loudly",
        "chatter",
        "forge",
        "nonsense",
        "surrogate",
        "score",
        "where",
        "parent",
        "gate",
    ),
)
