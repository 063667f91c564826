"""promtool as the tests call it: a check of files, and rules fed with series that we write.

Example: `firing({'dapod_buffer_redis_up{namespace="run"}': "0x60"}, [30], folder)`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FIRING = 'ALERTS{alertstate="firing"}'
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (Debian: apt-get install --no-install-recommends prometheus)",
)


def promtool(*words: str | Path) -> str:
    """What it printed; fails with that text when it fails."""
    done = subprocess.run(
        ["promtool", *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def firing(series: Mapping[str, str], minutes: Iterable[int], directory: Path) -> set[str]:
    """The alerts that fire at any of the minutes, by name; series have a value a minute."""
    asked = [{"expr": FIRING, "eval_time": f"{m}m", "exp_samples": []} for m in minutes]
    said = _unexpected(series, {"promql_expr_test": asked}, directory)
    return set(re.findall(r'alertname="(\w+)"', said))


def summaries(alert: str, series: Mapping[str, str], minute: int, directory: Path) -> list[str]:
    """What an alert that fires says, a line for each of its instances."""
    asked = [{"alertname": alert, "eval_time": f"{minute}m", "exp_alerts": []}]
    said = _unexpected(series, {"alert_rule_test": asked}, directory)
    return [json.loads(text) for text in re.findall(r'summary=("(?:[^"\\]|\\.)*")', said)]


def wrong(expected: Mapping[str, float], series: Mapping[str, str], directory: Path) -> str:
    """What promtool says of queries that do not give their number after a minute; '' if all do."""
    asked = [
        {"expr": query, "eval_time": "1m", "exp_samples": [{"labels": "{}", "value": value}]}
        for query, value in expected.items()
    ]
    return _unexpected(series, {"promql_expr_test": asked}, directory)


def _unexpected(series: Mapping[str, str], asked: Mapping[str, object], directory: Path) -> str:
    """What promtool says when it finds something else; empty when what was expected was right."""
    file = directory / "rules.test.json"  # YAML is a superset
    told = [{"series": name, "values": values} for name, values in series.items()]
    test = {
        "rule_files": [str(file) for file in RULES],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": told, **asked}],
    }
    file.write_text(json.dumps(test))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0 or "got:" in said, said
    return "" if done.returncode == 0 else said
