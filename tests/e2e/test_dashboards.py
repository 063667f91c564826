"""Every panel shows something of a real run, and no alert fires in it.

A real Prometheus with the shipped rules scrapes a short quickstart; every query of every dashboard
is put to it as Grafana would.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deploy.live_prometheus import LivePrometheus, needs_prometheus
from tests.deploy.queries import names, panels, rules
from tests.e2e.live_run import LiveRun

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), needs_prometheus]

SERVICES = ("buffer", "reward", "rollout", "trainer")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[LivePrometheus]:
    """After three steps of a run that goes on, and evaluates."""
    folder = tmp_path_factory.mktemp("dashboards")
    problems = [json.dumps({"prompt": f"What is {n} + 1?", "answer": str(n + 1)}) for n in range(4)]
    (folder / "problems.jsonl").write_text("\n".join(problems))
    settings = {
        "evaluation.every_steps": 2,
        "evaluation.data.path": folder / "problems.jsonl",
        "evaluation.data.verifier": "integer",
    }
    with LiveRun.start(folder / "run", steps=50, settings=settings) as run:
        run.wait(lambda: set(SERVICES) <= set(run.services()), "all services are started")
        addresses = {name: [urlsplit(run.services()[name]["ops"]).netloc] for name in SERVICES}
        with LivePrometheus.start(folder / "prometheus", addresses) as prometheus:
            run.wait_for_steps(3)
            prometheus.wait(
                lambda: (prometheus.value("sum(dapod_trainer_updates_total)") or 0) >= 3,
                "the third step is scraped",
                60,
            )
            yield prometheus


@pytest.mark.parametrize("panel", panels(), ids=lambda p: f"{p.dashboard}: {p.title}")
def test_a_panel_shows_data(prometheus: LivePrometheus, panel) -> None:
    assert [query for query in panel.queries if not prometheus.has_data(query)] == []


def test_every_metric_that_a_rule_reads_was_scraped(prometheus: LivePrometheus) -> None:
    read = {name for rule in rules() for name in names(rule["expr"])}
    assert read - prometheus.names() == set()


def test_all_services_answer_and_no_alert_fires(prometheus: LivePrometheus) -> None:
    assert prometheus.value('count(up{job=~"dapod-.+"} == 1)') == 4
    assert prometheus.value('count(ALERTS{alertstate="firing"})') is None
