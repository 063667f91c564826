"""The command `dapod verify`: the reward service's own pool over standard input, no service.

    python -m services.reward.verify --verifier math_verify < responses.jsonl > verdicts.jsonl

In, one a line: {"response": "…", "answer": "…"}; more keys may be there. Out, in the same order:
{"outcome": …, "correct": …, "reward": …, "extracted": …, "seconds": …}. Where there is no judgement
correct and reward are null and "error" says why. See `stream`.
"""

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from prometheus_client import CollectorRegistry

from dapod.config import MAX_DEADLINE_SECONDS, Reward
from services.reward.metrics import RewardMetrics
from services.reward.nursery import LOAD_SECONDS
from services.reward.pool import VerifierPool
from services.reward.stream import VerdictStream

_LOOK_UP_SECONDS = 0.2
_SILENT_SECONDS = 5.0
_PATIENCE_SECONDS = LOAD_SECONDS + 10.0
"""The pool's own sentence about the same limit comes first."""
_DEFAULTS = Reward()


class Refused(Exception):
    """The verifier cannot be used; the message says what to change."""


class Parser(argparse.ArgumentParser):
    """One sentence and exit status 2, as for every other mistake."""

    def error(self, message: str) -> NoReturn:
        print(f"dapod: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the input is through, whatever the verdicts; 2 for what the user must change."""
    chosen = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="dapod: %(message)s")  # verdicts say the rest
    try:
        with _pool(chosen) as pool:
            _wait_for_a_worker(pool)
            verdicts = sys.stdout.buffer
            VerdictStream(pool=pool, verifier=chosen.verifier, verdicts=verdicts).run(
                sys.stdin.buffer
            )
    except Refused as error:
        print(f"dapod: --verifier {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Nobody reads the output any more; python would complain about that again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _wait_for_a_worker(pool: VerifierPool) -> None:
    """Refused when none will come; what is being waited for is said once."""
    started = time.monotonic()
    silent_seconds = _SILENT_SECONDS
    while not pool.wait_until_warm(_LOOK_UP_SECONDS, workers=1):
        if pool.refusal:
            raise Refused(pool.refusal)
        waited = time.monotonic() - started
        if waited > _PATIENCE_SECONDS:
            raise Refused(f"has no worker after {waited:.0f} s: {pool.waiting_for}")
        if waited > silent_seconds and pool.waiting_for:
            print(f"dapod: waiting: {pool.waiting_for}", file=sys.stderr, flush=True)
            silent_seconds = math.inf


def _pool(chosen: argparse.Namespace) -> VerifierPool:
    return VerifierPool(
        verifiers=[chosen.verifier],
        workers=chosen.workers,
        deadline_seconds=chosen.deadline_seconds,
        memory_bytes=chosen.memory_mib * 1024 * 1024,
        metrics=RewardMetrics(CollectorRegistry()),
    )


def _parser() -> Parser:
    parser = Parser(
        prog="dapod verify",
        description='Judge JSON lines {"response": "…", "answer": "…"} from standard input.',
    )
    parser.add_argument("--verifier", required=True, metavar="NAME", help="see docs/verifiers.md")
    parser.add_argument(
        "--workers",
        type=_whole,
        default=_DEFAULTS.workers,
        metavar="N",
        help="processes that judge side by side (default: %(default)s)",
    )
    parser.add_argument(
        "--deadline-seconds",
        type=_deadline,
        default=_DEFAULTS.deadline_seconds,
        metavar="S",
        help="a worker that takes longer for one response is killed (default: %(default)s)",
    )
    parser.add_argument(
        "--memory-mib",
        type=_whole,
        default=_DEFAULTS.memory_mib,
        metavar="M",
        help="memory limit of one worker (default: %(default)s)",
    )
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _deadline(text: str) -> float:
    """As in a run's config, so that what was tried here can be written there."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_DEADLINE_SECONDS:  # not a number is not within bounds either
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number above 0 and at most {MAX_DEADLINE_SECONDS:g}"
        )
    return seconds


if __name__ == "__main__":
    sys.exit(main())
