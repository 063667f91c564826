"""The program of one verifier process: read a job, judge it, answer, for ever.

It is trusted code run on untrusted text. It has no deadline of its own: `process` holds the other
end of the socket and kills this program when an answer is late. It limits its own memory, because
only it knows what it weighs once the verifiers are loaded. Standard library only, and neither
`dapod` nor gRPC: a replacement for a killed worker must be warm in a blink.

    python -m services.reward.worker --verifiers services.reward.verifiers --memory-bytes 536870912

One JSON object a line, both ways, over the socket that is standard input:

    ← {"verifiers": ["dapo_math", "integer"]}                        once, when warm
    → {"verifier": "integer", "response": "12", "answer": "12"}
    ← {"correct": true, "extracted": "12"}   or   {"error": "ValueError: the key 'x' is not …"}
"""

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from services.reward.verifiers.judgement import Verifier

EXIT_OUT_OF_MEMORY = 12  # ENOMEM
MAX_DETAIL_CHARACTERS = 300

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--verifiers", required=True, help="the module that holds VERIFIERS")
    parser.add_argument("--memory-bytes", required=True, type=int, help="on top of what is loaded")
    arguments = parser.parse_args()
    die_with_the_parent()
    connection = take_standard_input()
    verifiers = importlib.import_module(arguments.verifiers).VERIFIERS
    silence()
    limit_memory(arguments.memory_bytes)
    # The service died or closed the pool; it needs no farewell.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(connection, verifiers)


def serve(connection: socket.socket, verifiers: Mapping[str, Verifier]) -> None:
    """One job at a time until the other end closes."""
    connection.sendall(line({"verifiers": sorted(verifiers)}))
    with connection.makefile("rb") as jobs:
        for job in jobs:
            connection.sendall(judge(verifiers, **json.loads(job)))


def judge(verifiers: Mapping[str, Verifier], verifier: str, response: str, answer: str) -> bytes:
    """What the verifier said, or what it raised, as a line."""
    try:
        judgement = verifiers[verifier](response, answer)
        extracted = judgement.extracted and judgement.extracted[:MAX_DETAIL_CHARACTERS]
        return line({"correct": judgement.correct, "extracted": extracted})
    except MemoryError:
        # What is half allocated now cannot be trusted with another job.
        os._exit(EXIT_OUT_OF_MEMORY)
    except BaseException as error:  # math-verify's own time-out is not an Exception
        return line({"error": f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARACTERS]})


def line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def die_with_the_parent() -> None:
    """SIGKILL when the thread that started us ends; a hung verifier reads no closed socket.

    Should the parent have died before this line, the first read finds the socket closed.
    """
    prctl: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def take_standard_input() -> socket.socket:
    """The socket moves to a descriptor of its own; a verifier that reads input finds none."""
    connection = socket.socket(fileno=os.dup(0))
    _point_at_null(0)
    return connection


def silence() -> None:
    """A verifier that prints without end must not fill the service's log."""
    _point_at_null(1)
    _point_at_null(2)


def limit_memory(extra_bytes: int) -> None:
    """Address space, which also counts what is reserved and unused: hence relative to now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _point_at_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)


if __name__ == "__main__":
    main()
