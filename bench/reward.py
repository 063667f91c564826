"""Verifications a second: the reward service's pool, a fork per call, and plain Math-Verify.

    python -m bench.reward [--verifications N] [--workers N]

One run, one mix, three ways, each judging the same responses by `math_verify`'s rules:

- pool: services.reward.pool, warm workers that are killed at the deadline;
- fork: a fresh fork of a process with the library loaded for every call, as many at a time as the
  pool has workers, killed at the deadline (what one gets from multiprocessing and a time-out);
- plain: parse and verify in one process, one after the other, the library's own time-outs on
  (signals, so it must be the main thread: no service can do that).

The mix: groups of 8 responses to one key, 500 to 8,000 characters of working before the answer;
numbers, fractions, roots, polynomials, sets and matrices, right and wrong, boxed or not, some with
no answer. Every response differs, so that no cache answers for the library. A second round adds
hostile ones. Responses per second count everything, the hostile ones' deadlines included.
"""

import argparse
import logging
import multiprocessing
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from prometheus_client import CollectorRegistry

from services.reward.metrics import RewardMetrics
from services.reward.pool import VerifierPool
from services.reward.process import Job

GROUP_SIZE = 8
DEADLINE_SECONDS = 1  # math-verify's own time-outs are whole seconds
HOSTILE_EVERY = 100
FORKS_ARE_FEWER = 8
"""They are that slow; the rate is what is compared."""
HOSTILE = ("2^{10^{10}}", "(10^7)!", "3^{10^8}+1", "\\binom{10^7}{5000000}")
WORDS = ("so", "we", "have", "that", "the", "sum", "of", "$x$", "and", "12", "$x+12=3x$", "gives")

Judge = Callable[[Sequence[Job]], list[bool | None]]
"""None: no judgement in time."""


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    warm_up_seconds: float
    per_second: float
    per_second_hostile: float
    verdicts: list[bool | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verifications", type=int, default=800)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    logging.disable(logging.ERROR)  # each hostile response's warnings
    honest = mix(random.Random(1), chosen.verifications)
    hostile = with_hostile(mix(random.Random(2), chosen.verifications))
    rows = [
        measure_pool(chosen.workers, honest, hostile),
        measure(
            "fork per call",
            lambda jobs: forked(jobs, chosen.workers),
            honest[: len(honest) // FORKS_ARE_FEWER],
            hostile[: len(hostile) // FORKS_ARE_FEWER],
        ),
        measure("plain, 1 process", plain, honest, hostile),
    ]
    print_table(rows, chosen.workers, len(honest), len(hostile) // HOSTILE_EVERY)


def mix(chance: random.Random, count: int) -> list[Job]:
    jobs: list[Job] = []
    while len(jobs) < count:
        key, right, wrong = problem(chance)
        jobs += [
            Job(verifier="math_verify", response=response(chance, right, wrong), answer=key)
            for _ in range(GROUP_SIZE)
        ]
    return jobs[:count]


def problem(chance: random.Random) -> tuple[str, str, str]:
    """(key, another way to write it, something else)."""
    a, b, c = (chance.randint(2, 999) for _ in range(3))
    return chance.choice(
        [
            *[(f"{a}", f"{a}", f"{a + b}")] * 6,  # most answers are integers
            (
                f"\\frac{{{a}}}{{{b}}}",
                f"\\dfrac{{{a * c}}}{{{b * c}}}",
                f"\\frac{{{b}}}{{{a + b}}}",
            ),
            (f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b}}}", f"{a}\\sqrt{{{b + 1}}}"),
            (f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})", f"(x+{a})(x-{b})"),
            (f"\\{{{a},{b},{c}\\}}", f"\\{{{c},{a},{b}\\}}", f"\\{{{a},{b}\\}}"),
            (f"({a},{b})", f"\\left({a},{b}\\right)", f"({b},{a})"),
            (f"\\begin{{pmatrix}}{a}\\\\{b}\\end{{pmatrix}}",) * 2 + (f"\\frac{{{a}}}{{{b}}}",),
            (f"{a}\\pi", f"\\pi\\cdot {a}", f"{a}.14"),
        ]
    )


def response(chance: random.Random, right: str, wrong: str) -> str:
    words = [chance.choice(WORDS) for _ in range(chance.randint(100, 1600))]
    lines = "\n".join(" ".join(words[i : i + 15]) for i in range(0, len(words), 15))
    answer = right if chance.random() < 0.5 else wrong
    form = chance.choices(["\\boxed{%s}.", "the answer is $%s$.", "I am not sure"], [8, 1, 1])[0]
    return f"{lines}\nTherefore {form % answer if '%' in form else form}"


def with_hostile(jobs: list[Job]) -> list[Job]:
    """Every hundredth job's answer becomes one that no computer can write down."""
    bad = [
        Job(verifier=job.verifier, response=f"\\boxed{{{HOSTILE[i % len(HOSTILE)]}}}", answer="7")
        for i, job in enumerate(jobs[::HOSTILE_EVERY])
    ]
    return [
        bad[i // HOSTILE_EVERY] if i % HOSTILE_EVERY == 0 else job for i, job in enumerate(jobs)
    ]


def measure(name: str, judge: Judge, honest: list[Job], hostile: list[Job]) -> Row:
    warm_up, _ = timed(judge, mix(random.Random(3), 40))
    seconds, verdicts = timed(judge, honest)
    hostile_seconds, _ = timed(judge, hostile)
    print(f"{name}: {warm_up:.1f} s, {seconds:.1f} s, {hostile_seconds:.1f} s", flush=True)
    return Row(
        name=name,
        warm_up_seconds=warm_up,
        per_second=len(honest) / seconds,
        per_second_hostile=len(hostile) / hostile_seconds,
        verdicts=verdicts,
    )


def timed(judge: Judge, jobs: Sequence[Job]) -> tuple[float, list[bool | None]]:
    started = time.monotonic()
    verdicts = judge(jobs)
    return time.monotonic() - started, verdicts


def measure_pool(workers: int, honest: list[Job], hostile: list[Job]) -> Row:
    with VerifierPool(
        verifiers=["math_verify"],
        workers=workers,
        deadline_seconds=DEADLINE_SECONDS,
        memory_bytes=512 << 20,
        metrics=RewardMetrics(CollectorRegistry()),
    ) as pool:
        if not pool.wait_until_warm(60):
            raise TimeoutError("the pool's workers are not warm after 60 s")

        def judge(jobs: Sequence[Job]) -> list[bool | None]:
            return [
                v.outcome == "correct" if v.outcome.judged else None
                for v in pool.verify_all(jobs, 600)
            ]

        return measure("our pool", judge, honest, hostile)


def forked(jobs: Sequence[Job], workers: int) -> list[bool | None]:
    """One fork a call, `workers` at a time; whoever is late is killed."""
    verdicts: list[bool | None] = [None] * len(jobs)
    waiting = list(enumerate(jobs))[::-1]
    running: dict[Connection, tuple[int, BaseProcess, float]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            index, job = waiting.pop()
            ours, process = fork_for(job)
            running[ours] = (index, process, time.monotonic() + DEADLINE_SECONDS)
        first = min(deadline for _, _, deadline in running.values())
        ready = wait(list(running), max(0.0, first - time.monotonic()))
        late = [end for end, (_, _, at) in running.items() if at <= time.monotonic()]
        for end in {*ready, *late}:
            index, process, _ = running.pop(end)
            verdicts[index] = end.recv() if end in ready else None
            process.kill()
            process.join()
            end.close()
    return verdicts


def fork_for(job: Job) -> tuple[Connection, BaseProcess]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=lambda: theirs.send(judged(job, None))
    )
    process.start()
    theirs.close()
    return ours, process


def plain(jobs: Sequence[Job]) -> list[bool | None]:
    return [judged(job, DEADLINE_SECONDS) for job in jobs]


def judged(job: Job, timeout: int | None) -> bool:
    """What the library's README does, with a box first."""
    extraction = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    key = parse(f"\\boxed{{{job.answer}}}", extraction, parsing_timeout=timeout)
    said = parse(job.response, extraction, parsing_timeout=timeout)
    return bool(verify(key, said, timeout_seconds=timeout))


def print_table(rows: Sequence[Row], workers: int, count: int, hostile: int) -> None:
    ours = rows[0]
    print(
        f"{count} verifications by math_verify, {workers} workers, {DEADLINE_SECONDS} s deadline;"
    )
    print(f"second round: {hostile} of them hostile. Ratios: our pool against each.\n")
    print(f"{'':18}{'per second':>12}{'ratio':>8}{'hostile':>12}{'ratio':>8}{'agree':>8}")
    for row in rows:
        same = [a == b for a, b in zip(ours.verdicts, row.verdicts, strict=False)]
        agree = sum(same) / len(same)
        print(
            f"{row.name:18}{row.per_second:12.1f}{ours.per_second / row.per_second:8.2f}"
            f"{row.per_second_hostile:12.1f}"
            f"{ours.per_second_hostile / row.per_second_hostile:8.2f}{agree:8.1%}"
        )


if __name__ == "__main__":
    main()
