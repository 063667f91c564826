"""How far an evaluation is, in words: on a terminal under the services, in a log now and then."""

from __future__ import annotations

from dapod.cli.evaluate.tally import Tally
from dapod.cli.service_progress import Bar, duration

LINE_RATIO = 0.1
"""A log gets a line each time this share of the problems has been finished."""


def bar(tally: Tally, *, total: int, before: int, elapsed_seconds: float) -> Bar:
    """`before`: problems that were finished before this start of the command."""
    done = len(tally.records)
    here = done - before
    words = [f"{done}/{total} problems"]
    if done:
        for name, found in tally.metrics.items():
            words.append(f"{name} {found.value:.3f}")
    if here:
        words.append(f"{tally.tokens_per_second:.0f} tokens/s")
    if here and done < total:
        left = elapsed_seconds / here * (total - done)
        words.append(f"~{duration(left)} left")
    return Bar(text="  ".join(words), done=done, total=total)


def worth_a_line(done: int, mentioned: int, total: int) -> bool:
    """Whether enough has been finished since the last line, or all of it."""
    return done > mentioned and (done == total or done - mentioned >= LINE_RATIO * total)
