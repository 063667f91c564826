"""The dashboards as files: they explain themselves, and Prometheus takes every query."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.deploy.promtool import DEPLOY, needs_promtool, promtool, wrong
from tests.deploy.queries import DASHBOARDS, annotations, names, panels

UNITS = {"none", "percentunit", "s", "bytes", "cps", "sci"}


@pytest.mark.parametrize("panel", panels(), ids=lambda p: f"{p.dashboard}: {p.title}")
def test_a_panel_says_what_it_shows_and_in_which_unit(panel) -> None:
    assert panel.spec["description"].endswith(".")
    assert panel.spec["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel.queries and all(target["datasource"] for target in panel.spec["targets"])


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_one_grafana_can_provision(file: Path) -> None:
    dashboard = json.loads(file.read_text())
    assert dashboard["uid"] == file.stem
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(identities) == len(set(identities))
    defined = {f"${v['name']}" for v in dashboard["templating"]["list"]} | {"$__rate_interval"}
    named = {word for p in dashboard["panels"] for t in p.get("targets", ()) for word in _words(t)}
    assert named <= defined


def _words(target: dict[str, object]) -> set[str]:
    text = str(target["expr"])
    return {f"${part.split(chr(34))[0].split(']')[0]}" for part in text.split("$")[1:]}


def test_no_two_panels_overlap() -> None:
    for file in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(file.read_text())["panels"]:
            place = panel["gridPos"]
            cells = {
                (place["x"] + x, place["y"] + y)
                for x in range(place["w"])
                for y in range(place["h"])
            }
            assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
            taken |= cells


def test_one_page_goes_from_learning_to_the_trainer() -> None:
    page = json.loads((DEPLOY / "grafana" / "dashboards" / "dapod-run.json").read_text())
    rows = [panel["title"] for panel in page["panels"] if panel["type"] == "row"]
    assert rows == [
        "Learning",
        "Dynamic sampling",
        "Rollouts and their engines",
        "Buffer",
        "Reward",
        "Trainer",
    ]


@needs_promtool
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    queries = [query for panel in panels() for query in panel.queries] + annotations()
    recorded = [{"record": f"q:{i}", "expr": query} for i, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    said = promtool("check", "rules", file)
    assert f"{len(queries)} rules found" in said


@needs_promtool
def test_a_dashboard_counts_no_alerts_of_others(tmp_path: Path) -> None:
    """kube-prometheus-stack's Watchdog, for one, fires all the time."""
    shown = [query for panel in panels() for query in panel.queries] + annotations()
    asked = {f"sum({query})": 1 for query in shown if "ALERTS" in names(query)}
    # Two panels, and the same marks on every page.
    assert len(asked) == 3
    firing = 'alertstate="firing",namespace="run"'
    series = {
        f'ALERTS{{alertname="TrainerStalled",app="dapod",{firing}}}': "1x5",
        f'ALERTS{{alertname="Watchdog",{firing}}}': "1x5",
    }
    assert not (why := wrong(asked, series, tmp_path)), why


def test_provisioning_finds_the_dashboards_and_prometheus() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((folder / "dashboards" / "dapod.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


def test_grafana_counts_rates_over_the_real_scrape_interval() -> None:
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    sources = (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    interval = yaml.safe_load(sources)["datasources"][0]["jsonData"]["timeInterval"]
    assert interval == prometheus["global"]["scrape_interval"]
