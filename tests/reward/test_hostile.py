"""The corpus of hostile responses, through real workers."""

import importlib.util
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from dapod.types import Outcome
from services.reward.metrics import RewardMetrics
from services.reward.pool import VerifierPool
from services.reward.process import Job


def load_corpus():
    """The tests' own modules are no package: pytest imports each file by itself."""
    path = Path(__file__).with_name("hostile_responses.py")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.CORPUS


CORPUS = load_corpus()
DEADLINE_SECONDS = 0.4
ATTEMPTS = 2
HONEST = Job(verifier="integer", response="42", answer="42")


def test_the_corpus_is_large_and_has_no_duplicates():
    assert len(CORPUS) >= 60
    assert len({name for name, *_ in CORPUS}) == len(CORPUS)


@pytest.fixture(scope="module")
def hostile_pool():
    """Two workers that can judge the whole corpus."""
    with VerifierPool(
        verifiers=sorted({HONEST.verifier, *(verifier for _, verifier, *_ in CORPUS)}),
        workers=2,
        deadline_seconds=DEADLINE_SECONDS,
        memory_bytes=512 << 20,
        metrics=RewardMetrics(CollectorRegistry()),
    ) as pool:
        assert pool.wait_until_warm(60)
        yield pool


@pytest.fixture(scope="module")
def judged(hostile_pool):
    """(name, verification) of every response, an honest one judged after each."""
    jobs = [Job(verifier=verifier, response=text, answer=key) for _, verifier, text, key in CORPUS]
    started = time.monotonic()
    mixed = hostile_pool.verify_all([each for job in jobs for each in (job, HONEST)], 110)
    seconds = time.monotonic() - started
    names = [name for name, *_ in CORPUS]
    return list(zip(names, mixed[::2], strict=True)), mixed[1::2], seconds


def test_no_hostile_response_is_correct_or_passes_its_deadline(judged):
    hostile, _, _ = judged
    for name, verification in hostile:
        assert verification.outcome is not Outcome.CORRECT, name
        assert verification.seconds < ATTEMPTS * (DEADLINE_SECONDS + 0.5), name


def test_no_hostile_response_is_a_verifiers_error(judged):
    """A traceback would be our bug: what is too much is a timeout or killed."""
    hostile, _, _ = judged
    errors = {name: v.detail for name, v in hostile if v.outcome is Outcome.ERROR}
    assert errors == {}


def test_every_honest_response_between_them_is_judged_and_at_once(judged):
    _, honest, _ = judged
    assert {verification.outcome for verification in honest} == {Outcome.CORRECT}
    assert sorted(v.seconds for v in honest)[len(honest) // 2] < 0.05


def test_a_killed_worker_costs_little_more_than_the_time_it_judged(judged, hostile_pool):
    """The two workers' time beyond what they judged is what replacing them took."""
    hostile, honest, seconds = judged
    busy = sum(v.seconds for _, v in hostile) + sum(v.seconds for v in honest)
    kills = ATTEMPTS * sum(not v.outcome.judged for _, v in hostile)
    assert kills > 20
    idle_at_the_end = ATTEMPTS * (DEADLINE_SECONDS + 0.5)
    assert hostile_pool.workers * seconds - busy < 0.5 * kills + idle_at_the_end


def test_all_workers_are_there_afterwards(judged, hostile_pool, eventually):
    eventually(lambda: hostile_pool.warm == hostile_pool.workers, "all workers are warm")
