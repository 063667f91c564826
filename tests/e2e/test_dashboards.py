"""Every panel shows something of a real run, and no alert fires in it.

A real Prometheus with the shipped rules has scraped it; every query of every dashboard is put to it
as Grafana would.
"""

import pytest

from tests.deploy.live_prometheus import LivePrometheus, needs_prometheus
from tests.deploy.queries import names, panels, rules
from tests.e2e.finished_run import SERVICES, Finished

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), needs_prometheus]


@pytest.fixture
def prometheus(finished: Finished) -> LivePrometheus:
    assert finished.prometheus
    return finished.prometheus


@pytest.mark.parametrize("panel", panels(), ids=lambda p: f"{p.dashboard}: {p.title}")
def test_a_panel_shows_data(prometheus: LivePrometheus, panel) -> None:
    assert [query for query in panel.queries if not prometheus.has_data(query)] == []


def test_every_metric_that_a_rule_reads_was_scraped(prometheus: LivePrometheus) -> None:
    read = {name for rule in rules() for name in names(rule["expr"])}
    assert read - prometheus.names() == set()


def test_all_services_answered_and_no_alert_fired(prometheus: LivePrometheus) -> None:
    assert prometheus.value('count(up{job=~"dapod-.+"} == 1)') == len(SERVICES)
    assert not prometheus.has_data('count(ALERTS{alertstate="firing"})')
