"""The program of the verifier processes: load the verifiers once, then fork a worker when asked.

    python -m services.reward.worker --memory-bytes 536870912 math_verify

    service ── control socket ──► template (this program, verifiers loaded, never judges)
       │                              │ fork: 10 ms, however heavy the libraries
       └──── one socket a worker ──► worker: read a job, judge it, answer, for ever

It is trusted code run on untrusted text. A worker has no deadline of its own: `process` holds the
other end of its socket and has it killed when an answer is late. It limits its own memory, because
only it knows what it weighs. Forking is safe here: the template has one thread and no gRPC, it is
never the service itself. Standard library only, and no verifier but those it is given.

Over the control socket, a message each (SOCK_SEQPACKET), standard input of the template:

    ← {"loading": "integer"}          for each of them
    ← {"verifiers": ["integer"]}      once, when warm; or {"refused": "'integr' is not a verifier"}
    → start, with a socket            ← {"pid": 4711}
    → 4711                            ← {"status": -9}      killed with its group, and reaped

Over a worker's socket, one JSON object a line:

    → {"verifier": "integer", "response": "12", "answer": "12"}
    ← {"correct": true, "extracted": "12"}   or   {"error": "ValueError: the key 'x' is not …"}
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.reward.verifiers import load
from services.reward.verifiers.judgement import RefusedVerifier, Verifier

START = b"start"
EXIT_OUT_OF_MEMORY = 12  # ENOMEM
MAX_DETAIL_CHARACTERS = 300
MAX_REFUSAL_CHARACTERS = 2000
_MESSAGE_BYTES = 64

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory-bytes", required=True, type=int, help="on top of what is loaded")
    parser.add_argument("verifiers", nargs="+", metavar="NAME", help="what it is to judge by")
    arguments = parser.parse_args()
    die_with_the_parent()
    control = take_standard_input()
    # The service died or closed the pool; it needs no farewell.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        try:
            verifiers = load_all(control, arguments.verifiers)
        except RefusedVerifier as error:
            control.sendall(line({"refused": sendable(str(error), MAX_REFUSAL_CHARACTERS)}))
            return
        silence()
        gc.freeze()  # a collection would touch, and so copy, every page that workers share
        start_and_end_workers(control, verifiers, arguments.memory_bytes)


def load_all(control: socket.socket, names: Sequence[str]) -> dict[str, Verifier]:
    """It may take minutes, so it says what it is at."""
    verifiers = {}
    for name in names:
        control.sendall(line({"loading": name}))
        verifiers[name] = load(name)
    return verifiers


def start_and_end_workers(
    control: socket.socket, verifiers: Mapping[str, Verifier], memory_bytes: int
) -> None:
    """Until the other end closes; no worker outlives it."""
    control.sendall(line({"verifiers": sorted(verifiers)}))
    workers: set[int] = set()
    try:
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 1)
            if not message:
                return
            if message == START:
                with socket.socket(fileno=descriptors[0]) as connection:
                    workers.add(pid := fork_worker(control, connection, verifiers, memory_bytes))
                control.sendall(line({"pid": pid}))
            else:
                workers.remove(pid := int(message))
                control.sendall(line({"status": end(pid)}))
    finally:
        for pid in workers:
            end(pid)


def fork_worker(
    control: socket.socket,
    connection: socket.socket,
    verifiers: Mapping[str, Verifier],
    memory_bytes: int,
) -> int:
    template = os.getpid()
    if pid := os.fork():
        os.setpgid(pid, pid)  # the child does it too: whoever comes first
        return pid
    try:
        os.setpgid(0, 0)  # what its verifiers start can be killed with it
        die_with_the_parent()
        if os.getppid() == template:  # else it died before that line
            control.close()
            limit_memory(memory_bytes)
            serve(connection, verifiers)
    finally:  # whatever happens, a worker never returns into the template's loop
        os._exit(0)


def end(pid: int) -> int:
    """Nobody else reaps, so until here the pid is this worker's and nobody else's; so is the group,
    which outlives a worker that died by itself as long as something it started runs."""
    with contextlib.suppress(ProcessLookupError):  # a verifier may have left its group
        os.killpg(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def serve(connection: socket.socket, verifiers: Mapping[str, Verifier]) -> None:
    """One job at a time until the other end closes."""
    with connection.makefile("rb") as jobs:
        for job in jobs:
            connection.sendall(judge(verifiers, **json.loads(job)))


def judge(verifiers: Mapping[str, Verifier], verifier: str, response: str, answer: str) -> bytes:
    """What the verifier said, or what it raised, as a line."""
    try:
        judgement = verifiers[verifier](response, answer)
        extracted = judgement.extracted and sendable(judgement.extracted, MAX_DETAIL_CHARACTERS)
        return line({"correct": judgement.correct, "extracted": extracted})
    except MemoryError:
        # What is half allocated now cannot be trusted with another job.
        os._exit(EXIT_OUT_OF_MEMORY)
    except BaseException as error:  # math-verify's own time-out is not an Exception
        return line({"error": sendable(f"{type(error).__name__}: {error}", MAX_DETAIL_CHARACTERS)})


def sendable(text: str, most: int) -> str:
    """Cut, and without the lone surrogates that json.loads makes of "\\ud800": UTF-8 has none, so
    protobuf would refuse the whole group."""
    return text[:most].encode("utf-8", "replace").decode()


def line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def die_with_the_parent() -> None:
    """SIGKILL when the thread that started us ends; a hung verifier reads no closed socket.

    Should the template's parent have died before this line, its first read finds a closed socket.
    """
    prctl: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def take_standard_input() -> socket.socket:
    """The socket moves to a descriptor of its own; a verifier that reads input finds none.

    What a module prints while it is imported goes to the log: standard output may be a result.
    """
    connection = socket.socket(fileno=os.dup(0))
    _point_at_null(0)
    os.dup2(2, 1)
    return connection


def silence() -> None:
    """A verifier that prints without end must not fill the service's log."""
    # What was printed so far would go with it: to a file or a pipe Python writes late.
    sys.stdout.flush()
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
