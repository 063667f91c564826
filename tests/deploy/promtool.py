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
    test = {
        "rule_files": [str(file) for file in RULES],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": n, "values": v} for n, v in series.items()],
                "promql_expr_test": [
                    {"expr": FIRING, "eval_time": f"{m}m", "exp_samples": []} for m in minutes
                ],
            }
        ],
    }
    file = directory / "rules.test.json"
    file.write_text(json.dumps(test))  # YAML is a superset
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout + done.stderr
    found = set(re.findall(r'alertname="(\w+)"', said))
    # It expected silence: it fails exactly when something fired.
    assert (done.returncode == 0) == (not found), said
    return found
