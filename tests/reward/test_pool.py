"""The pool with real worker processes: retries, and what a hostile job may cost the others."""

import logging
import math
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dapod.types import Outcome
from services.reward import nursery
from services.reward.pool import PoolStopped, VerifierPool
from services.reward.process import Job


def named(verifier):
    return f"python:hostile_verifiers:{verifier}"


def job(verifier, response="12", answer="12"):
    return Job(verifier=named(verifier), response=response, answer=answer, group_id="g1")


def outcomes(pool, *jobs):
    return [verification.outcome for verification in pool.verify_all(jobs, 30)]


@pytest.fixture
def value(registry):
    """A metric's value now."""
    return lambda name, **labels: registry.get_sample_value(f"dapod_reward_{name}", labels)


@pytest.fixture
def make_cold_pool(metrics):
    """A pool that need not become warm."""
    return lambda verifier: VerifierPool(
        verifiers=[verifier],
        workers=1,
        deadline_seconds=20,
        memory_bytes=64 << 20,
        metrics=metrics,
    )


def test_verifications_come_back_in_the_order_of_the_jobs(make_pool):
    pool = make_pool(workers=2)
    jobs = [job("honest", response=str(i)) for i in range(100)]
    assert [v.extracted for v in pool.verify_all(jobs, 30)] == [str(i) for i in range(100)]


def test_one_call_uses_all_workers(make_pool, tmp_path, value, eventually):
    pool = make_pool(workers=3)
    opened = tmp_path / "open"
    with ThreadPoolExecutor() as threads:
        call = threads.submit(outcomes, pool, *[job("gate", answer=str(opened))] * 4)
        eventually(lambda: value("workers_busy") == 3, "three workers are busy")
        assert value("queued_verifications") == 1
        opened.touch()
        assert call.result(30) == [Outcome.CORRECT] * 4


def test_a_worker_stays_warm_from_job_to_job(make_pool):
    pool = make_pool()
    assert len({v.extracted for v in pool.verify_all([job("where")] * 20, 30)}) == 1


@pytest.mark.parametrize(
    ("verifier", "outcome"),
    [
        ("hang", Outcome.TIMEOUT),
        ("hoard", Outcome.KILLED),
        ("leave", Outcome.KILLED),
        ("refuse", Outcome.ERROR),
    ],
)
def test_a_failure_is_retried_once_then_returned_and_counted(make_pool, value, verifier, outcome):
    pool = make_pool(deadline_seconds=0.3 if verifier == "hang" else 20)
    assert outcomes(pool, job(verifier), job("honest")) == [outcome, Outcome.CORRECT]
    assert value("retries_total", outcome=outcome) == 1
    assert value("kills_total", outcome=outcome) == 2
    assert value("verifications_total", verifier=named(verifier), outcome=outcome) == 1
    assert value("verifications_total", verifier=named("honest"), outcome="correct") == 1


def test_a_verification_is_progress(make_pool, value):
    pool = make_pool()
    assert math.isnan(value("last_progress_timestamp_seconds"))
    outcomes(pool, job("honest"))
    assert time.time() - value("last_progress_timestamp_seconds") < 60


def test_a_retry_that_succeeds_is_a_judgement_by_another_process(make_pool, tmp_path, value):
    pool = make_pool()
    first = pool.verify_all([job("where")], 30)[0].extracted
    retried = pool.verify_all([job("leave_once", answer=str(tmp_path / "seen"))], 30)[0]
    assert retried.outcome is Outcome.CORRECT
    assert retried.extracted != first
    assert value("verifications_total", verifier=named("leave_once"), outcome="killed") is None


def test_the_seconds_of_a_verification_include_its_retry(make_pool):
    (verification,) = make_pool(deadline_seconds=0.2).verify_all([job("hang")], 30)
    assert 0.4 <= verification.seconds < 5


def test_other_jobs_are_judged_while_one_hangs(make_pool, tmp_path, value, eventually):
    """The hung one is freed by the test, so what finishes before finished beside it."""
    pool = make_pool(workers=2, deadline_seconds=60)
    opened = tmp_path / "open"
    with ThreadPoolExecutor() as threads:
        hung = threads.submit(outcomes, pool, job("gate", answer=str(opened)))
        eventually(lambda: value("workers_busy") == 1, "one worker hangs")
        assert outcomes(pool, *[job("honest")] * 200) == [Outcome.CORRECT] * 200
        assert not hung.done()
        opened.touch()
        assert hung.result(30) == [Outcome.CORRECT]


def test_hostile_jobs_on_every_worker_do_not_wear_the_pool_out(make_pool, eventually):
    pool = make_pool(workers=2, deadline_seconds=0.5)
    hostile = [job(name) for name in ("hang_in_c", "hoard", "leave", "forge", "refuse")]
    mixed = [each for bad in hostile for each in (bad, job("honest"))]
    assert outcomes(pool, *mixed)[1::2] == [Outcome.CORRECT] * len(hostile)
    eventually(lambda: pool.warm == 2, "both workers are warm again")


def test_a_hostile_job_costs_its_worker_the_deadline_and_a_short_respawn(make_pool, eventually):
    deadline = 0.3
    pool = make_pool(deadline_seconds=deadline)
    started = time.monotonic()
    outcomes(pool, job("hang"))
    eventually(lambda: pool.warm == 1, "the worker is replaced")
    # Two attempts at most; a generous margin, since the machine may be busy.
    assert time.monotonic() - started < 2 * (deadline + 0.5) + 2


def test_a_worker_killed_while_idle_is_replaced(make_pool, eventually):
    pool = make_pool()
    pid = int(pool.verify_all([job("where")], 30)[0].extracted)
    os.kill(pid, signal.SIGKILL)
    assert outcomes(pool, job("honest")) == [Outcome.CORRECT]
    eventually(lambda: pool.warm == 1, "the worker is replaced")


def test_a_template_that_dies_is_replaced_and_no_job_is_lost(make_pool, eventually):
    pool = make_pool(workers=2)
    pid = int(pool.verify_all([job("parent")], 30)[0].extracted)
    os.kill(pid, signal.SIGKILL)
    assert outcomes(pool, *[job("honest")] * 20) == [Outcome.CORRECT] * 20

    def replaced():  # the kill may take its time
        (verification,) = pool.verify_all([job("parent")], 30)
        assert verification.outcome is Outcome.CORRECT
        return int(verification.extracted) != pid

    eventually(replaced, "the template is replaced")
    eventually(lambda: pool.warm == 2, "both workers are replaced")


def test_a_call_that_runs_out_of_time_says_how_far_it_came(make_pool, tmp_path):
    pool = make_pool()
    jobs = [job("honest"), job("gate", answer=str(tmp_path / "never"))]
    with pytest.raises(TimeoutError, match=r"1 of 2 responses were verified within 0\.3 s"):
        pool.verify_all(jobs, 0.3)


def test_waiting_for_a_free_worker_ends_with_the_call(make_pool, tmp_path, value, eventually):
    pool = make_pool()
    opened = tmp_path / "open"
    with ThreadPoolExecutor() as threads:
        busy = threads.submit(outcomes, pool, job("gate", answer=str(opened)))
        eventually(lambda: value("workers_busy") == 1, "the only worker is busy")
        marker = tmp_path / "ran"
        with pytest.raises(TimeoutError, match="0 of 1"):
            pool.verify_all([job("leave_once", answer=str(marker))], 0.05)
        opened.touch()
        assert busy.result(30) == [Outcome.CORRECT]
    assert outcomes(pool, job("honest")) == [Outcome.CORRECT]
    assert not marker.exists()  # nobody judges for a caller that has gone


def test_stopping_kills_the_workers_and_wakes_every_caller(make_pool, value, eventually):
    pool = make_pool(workers=2, deadline_seconds=60)
    pids = {int(v.extracted) for v in pool.verify_all([job("where")] * 50, 30)}
    before = threading.active_count()
    with ThreadPoolExecutor() as threads:
        call = threads.submit(outcomes, pool, *[job("hang")] * 6)
        eventually(lambda: value("workers_busy") == 2, "both workers hang")
        pool.__exit__()
        with pytest.raises(PoolStopped):
            call.result(10)
    with pytest.raises(PoolStopped):
        pool.verify_all([job("honest")], 30)
    assert threading.active_count() == before - 3  # two slots and the nursery
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_pool_whose_verifiers_do_not_load_is_never_warm_and_says_why(
    make_cold_pool, value, eventually
):
    with make_cold_pool("python:no_such_module:judge") as pool:
        eventually(lambda: pool.refusal, "the refusal is known")
        assert "importing 'no_such_module' failed with ModuleNotFoundError" in pool.refusal
        assert value("worker_start_failures_total") > 0
        assert pool.warm == 0
        with pytest.raises(TimeoutError):
            pool.verify_all([job("honest")], 0.1)


@pytest.mark.parametrize(
    ("deadline_seconds", "response", "said"),
    [
        (1e10, "12", "OverflowError: "),  # no config takes that one
        (20, b"12", "TypeError: Object of type bytes is not JSON serializable"),
    ],
)
def test_what_a_slot_did_not_expect_is_an_error_in_the_log_and_the_slot_goes_on(
    make_pool, value, eventually, caplog, deadline_seconds, response, said
):
    pool = make_pool(deadline_seconds=deadline_seconds)
    for count in (1, 2):
        (verification,) = pool.verify_all([job("honest", response=response)], 30)
        assert verification.outcome is Outcome.ERROR
        assert verification.detail.startswith(said)
        assert value("verifications_total", verifier=named("honest"), outcome="error") == count
        eventually(lambda: pool.warm == 1, "the slot has another worker")
    assert f"group=g1 verifier={named('honest')} given up: {said}" in caplog.text
    assert "verifier slot 0 goes on with another worker\nTraceback" in caplog.text


def test_a_slot_judges_the_next_job_after_one_it_did_not_expect(make_pool):
    pool = make_pool()
    assert outcomes(pool, job("honest", response=b"12"), job("honest")) == [
        *(Outcome.ERROR, Outcome.CORRECT)
    ]


def test_a_verifier_that_loads_for_long_is_waited_for_by_its_name(
    make_cold_pool, slow_to_load, tmp_path, eventually, caplog
):
    caplog.set_level(logging.INFO)
    said = "'python:slow:judge' is loading, for 600 s at most"
    with make_cold_pool(slow_to_load) as pool:
        eventually(lambda: pool.waiting_for == said, "it says what it waits for")
        assert f"the verifier {said}" in caplog.text
        (tmp_path / "loads").touch()
        assert pool.wait_until_warm(20)
        assert pool.waiting_for == ""


def test_a_verifier_that_does_not_load_in_time_is_named_and_tried_again(
    make_cold_pool, slow_to_load, tmp_path, eventually, value, caplog, monkeypatch
):
    monkeypatch.setattr(nursery, "LOAD_SECONDS", 0.5)
    said = "'python:slow:judge' did not load within 0.5 s"
    with make_cold_pool(slow_to_load) as pool:
        eventually(lambda: pool.refusal == said, "the limit is passed")
        assert f"{said}; trying again in 1 s" in caplog.text
        assert value("worker_start_failures_total") > 0
        eventually(lambda: f"; the last try: {said}" in pool.waiting_for, "the next try")
        (tmp_path / "loads").touch()
        assert pool.wait_until_warm(20)
        assert (pool.refusal, pool.waiting_for) == (None, "")


def test_a_pool_closes_at_once_while_a_verifier_loads(make_cold_pool, slow_to_load, eventually):
    before = threading.active_count()
    with make_cold_pool(slow_to_load) as pool:
        eventually(lambda: "is loading" in pool.waiting_for, "it loads")
    assert threading.active_count() == before


def test_a_module_that_writes_into_our_socket_is_given_up_again_and_again(
    make_cold_pool, value, eventually, tmp_path, monkeypatch, caplog
):
    """The thread that starts templates survives what it did not expect."""
    scribbles = "import os\nfor descriptor in range(3, 10):\n    try: os.write(descriptor, b'x')\n"
    (tmp_path / "scribbler.py").write_text(scribbles + "    except OSError: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with make_cold_pool("python:scribbler:judge"):
        eventually(lambda: value("worker_start_failures_total") > 1, "it is tried again")
    assert "JSONDecodeError" in caplog.text


def test_the_services_own_verifiers_judge_in_the_pool(make_pool):
    pool = make_pool(verifiers=["integer", "dapo_math"])
    assert pool.verifiers == ("dapo_math", "integer")
    jobs = [
        Job(verifier=verifier, response=response, answer=answer)
        for verifier, response, answer in (
            ("integer", "12.", "12"),
            ("integer", "13", "12"),
            ("integer", "twelve", "12"),
            ("dapo_math", "So:\nAnswer: $\\frac12$", "\\frac{1}{2}"),
            ("integer", "12", "twelve"),
        )
    ]
    assert outcomes(pool, *jobs) == [
        *(Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSED, Outcome.CORRECT, Outcome.ERROR)
    ]
