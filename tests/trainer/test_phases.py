"""The seconds of a step, and the heartbeat that its phases make, on a virtual clock."""

import pytest
from prometheus_client import CollectorRegistry

from dapod.heartbeat import Heartbeat
from dapod.rpc import Patience
from services.trainer.metrics import TrainerMetrics
from services.trainer.phases import BEAT_SECONDS, Phases, longer
from services.trainer.ranks import TIMEOUT
from services.trainer.source import POLL_SECONDS
from tests.virtual_clock import Clock

GIB = 2**30


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def heartbeat(clock):
    return Heartbeat(clock)


def phases_of(heartbeat, **allowed):
    return Phases(TrainerMetrics(CollectorRegistry()), heartbeat, longer(**allowed))


def stuck_after(heartbeat, clock, seconds):
    """Whether the loop counts as stuck once it has been silent for so long, and not just before."""
    began = clock.now
    clock.now = began + seconds
    before = heartbeat.overdue_seconds
    clock.now += 1
    return before == 0 and heartbeat.overdue_seconds == 1


def test_a_loop_that_hangs_in_any_phase_or_between_two_is_seen(heartbeat, clock):
    phases = phases_of(heartbeat, model_bytes=0, follows=0.0)
    for phase in ("wait", "fetch", "old_logprobs", "update", "publish", "commit", "checkpoint"):
        with phases(phase):
            assert stuck_after(heartbeat, clock, BEAT_SECONDS), phase
        assert stuck_after(heartbeat, clock, BEAT_SECONDS), f"after {phase}"


def test_a_phase_that_goes_on_may_last_for_ever(heartbeat, clock):
    phases = phases_of(heartbeat, model_bytes=0, follows=0.0)
    with phases("update"):
        for _ in range(100):
            clock.now += BEAT_SECONDS
            assert heartbeat.overdue_seconds == 0
            phases.beat()


def test_nothing_is_promised_while_the_model_loads(heartbeat, clock):
    phases_of(heartbeat, model_bytes=0, follows=0.0)
    clock.now = 1e6
    assert heartbeat.overdue_seconds == 0


def test_a_large_model_has_time_to_be_published_and_saved_and_no_more(heartbeat, clock):
    # Qwen2.5-32B: 61 GiB of weights, 427 GiB of checkpoint.
    phases = phases_of(heartbeat, model_bytes=61 * GIB, follows=0.0)
    with phases("publish"):
        assert stuck_after(heartbeat, clock, BEAT_SECONDS + 2 * 61 * GIB / 100e6)
    with phases("checkpoint"):
        assert stuck_after(heartbeat, clock, BEAT_SECONDS + 7 * 61 * GIB / 100e6)
    with phases("update"):
        assert stuck_after(heartbeat, clock, BEAT_SECONDS)


def test_a_rank_that_waits_for_rank_0_is_alive_until_its_collective_fails(heartbeat, clock):
    phases = phases_of(heartbeat, model_bytes=0, follows=TIMEOUT.total_seconds())
    with phases("wait"):
        clock.now += TIMEOUT.total_seconds()
        assert heartbeat.overdue_seconds == 0


def test_an_exception_ends_a_phase_with_a_beat_too(heartbeat, clock):
    phases = phases_of(heartbeat, model_bytes=61 * GIB, follows=0.0)
    with pytest.raises(OSError, match="disk"), phases("checkpoint"):
        raise OSError("disk")
    assert stuck_after(heartbeat, clock, BEAT_SECONDS)


def test_the_bound_is_between_the_longest_call_to_the_buffer_and_the_ranks_own_timeout():
    longest = Patience.give_up_seconds + Patience.timeout_seconds
    assert POLL_SECONDS < longest < BEAT_SECONDS < TIMEOUT.total_seconds()


def test_seconds_are_counted_by_phase_until_the_step_ends(heartbeat):
    phases = phases_of(heartbeat, model_bytes=0, follows=0.0)
    with phases("wait"), phases("fetch"):
        pass
    assert 0 < phases.seconds("fetch") <= phases.seconds("wait") <= phases.total
    phases.restart()
    assert phases.seconds("wait", "fetch") == 0
