"""The compose file trains; rollouts come and go while it does; nothing is lost.

One run serves all tests here, in the order of the file: it is scaled 1 -> 3 -> 1 on the way.
"""

from __future__ import annotations

import json
import signal
import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest

from dapod import config
from tests.podman.composed import MODELS, ComposedRun
from tests.podman.podman import ROOT

pytestmark = [pytest.mark.timeout(2400), pytest.mark.usefixtures("images")]

LEASE_SECONDS = config.load(ROOT / "configs" / "quickstart.toml").buffer.lease_seconds
ENGINE_SECONDS = 600.0
"""For an engine to start beside a trainer, on two cores that others use as well."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposedRun]:
    if not (MODELS / "smollm2-135m-instruct" / "model.safetensors").exists():
        pytest.fail("the quickstart's model is not there: make model")
    # More steps than the tests wait for: it must still train when they scale it.
    with ComposedRun.start(tmp_path_factory.mktemp("compose") / "project", steps=200) as run:
        yield run


def whole(run: ComposedRun) -> None:
    """No step is missing or doubled, no group lost, none stale."""
    steps = [row["step"] for row in run.rows()]
    assert steps == list(range(len(steps)))
    assert run.buffer("conservation_error_groups") == 0
    assert run.buffer("groups_stale_total") == 0


def leased_groups(run: ComposedRun, container: str) -> float:
    """Leases that this rollout has ended, whatever became of them."""
    return run.value(container, "dapod_rollout_groups_total") or 0.0


def test_three_steps_are_trained(run: ComposedRun) -> None:
    run.wait(lambda: run.trained() >= 3, "three steps are trained", 1200)
    whole(run)


def test_no_process_is_root_and_no_zombie_is_left(run: ComposedRun) -> None:
    for service in ("buffer", "reward", "rollout", "trainer"):
        (container,) = run.containers(service)
        processes = _processes(run, container)
        assert {uid for uid, _ in processes} == {10001}
        assert "Z" not in {state for _, state in processes}


def test_new_rollouts_load_the_newest_policy_and_take_work(run: ComposedRun) -> None:
    trained = run.trained()
    run.scale(3)
    rollouts = run.containers("rollout")
    assert len(rollouts) == 3
    for container in rollouts[1:]:
        _wait_for_work(run, container)
    run.wait(lambda: run.trained() > trained, "a step is trained meanwhile", 600)
    run.wait(
        lambda: all(leased_groups(run, container) > 0 for container in rollouts),
        "every rollout has finished a group",
        600,
    )
    whole(run)


def test_a_new_rollout_that_has_loaded_takes_work_within_one_lease(run: ComposedRun) -> None:
    (buffer,) = run.containers("buffer")
    for rollout in run.containers("rollout")[1:]:
        name = run.execute(rollout, "import socket; print(socket.gethostname())").strip()
        loaded = run.first_time(rollout, " loaded in ")
        waited = (run.first_time(buffer, f" to {name}") - loaded).total_seconds()
        print(f"{rollout} had its first lease {waited:.1f} s after its engine had started")
        assert waited < LEASE_SECONDS


def test_prometheus_finds_every_rollout_by_its_name(run: ComposedRun) -> None:
    query = 'sum(up{job="dapod-rollout"})'
    run.wait(lambda: _prometheus(query) == 3, "Prometheus scrapes three rollouts", 120)
    assert _prometheus('count(up{job=~"dapod-.+"} == 1)') == 6


def test_a_stopped_rollout_gives_its_prompts_back_and_a_killed_one_loses_them(
    run: ComposedRun,
) -> None:
    trained = run.trained()
    returned, expired = run.buffer("leases_returned_total"), run.buffer("leases_expired_total")
    _, stopped, killed = run.containers("rollout")
    run.signal_at_work(stopped, signal.SIGTERM, init=True)
    run.wait(lambda: run.buffer("leases_returned_total") > returned, "leases are given back", 60)
    run.signal_at_work(killed, signal.SIGKILL, init=False)
    run.scale(1)
    assert len(run.containers("rollout")) == 1
    run.wait(
        lambda: run.buffer("leases_expired_total") > expired,
        "the leases of the killed one have run out",
        2 * LEASE_SECONDS,
    )
    # They are leased again, or the conservation that `whole` looks at would show them missing.
    run.wait(lambda: run.trained() >= trained + 2, "the one that is left trains on", 900)
    whole(run)


def _wait_for_work(run: ComposedRun, container: str) -> None:
    run.wait(lambda: _ready(run, container), f"{container} is ready", ENGINE_SECONDS)
    run.wait(lambda: _works(run, container), f"{container} has leased", ENGINE_SECONDS)


def _works(run: ComposedRun, container: str) -> bool:
    now = run.value(container, "dapod_rollout_groups_in_flight") or 0.0
    return now + leased_groups(run, container) > 0


def _ready(run: ComposedRun, container: str) -> bool:
    page = run.page(container, "/readyz")
    return bool(page) and bool(json.loads(page)["ready"])


def _prometheus(query: str) -> float | None:
    url = "http://127.0.0.1:9090/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(url, timeout=30) as answer:
        found = json.load(answer)["data"]["result"]
    return float(found[0]["value"][1]) if found else None


def _processes(run: ComposedRun, container: str) -> list[tuple[int, str]]:
    """User and state of each process in it, from its own /proc."""
    code = (
        "import pathlib\n"
        "for p in pathlib.Path('/proc').glob('[0-9]*/status'):\n"
        "    try: lines = dict(l.split(':', 1) for l in p.read_text().splitlines())\n"
        "    except OSError: continue\n"
        "    print(lines['Uid'].split()[0], lines['State'].split()[0])\n"
    )
    return [
        (int(uid), state)
        for uid, state in (line.split() for line in run.execute(container, code).splitlines())
    ]
