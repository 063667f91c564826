"""The autoscalers' expression, evaluated by Prometheus' own engine on a run that ends."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.manifests import build, of_kind

PROMTOOL = shutil.which("promtool")


def keda_query() -> str:
    (scaled,) = of_kind(build("cpu-demo", "autoscaling-keda"), "ScaledObject")
    query: str = scaled["spec"]["triggers"][0]["metadata"]["query"]
    return query


def phase(name: str, values: str) -> dict[str, str]:
    labels = f'phase="{name}", namespace="dapod", pod="trainer-0"'
    return {"series": f"dapod_trainer_phase_seconds_total{{{labels}}}", "values": values}


def finished(pod: str, values: str) -> dict[str, str]:
    labels = f'namespace="dapod", pod="{pod}"'
    return {"series": f"dapod_buffer_run_finished{{{labels}}}", "values": values}


def promtool(folder: Path, test: dict[str, Any]) -> None:
    file = folder / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": [test]}))
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on PATH (Debian: prometheus)")
def test_the_share_of_waiting_is_one_number_and_0_once_the_run_has_finished(
    tmp_path: Path,
) -> None:
    # 15 of 60 s are waited; after 40 minutes the run is over and its trainer gone.
    test = {
        "interval": "1m",
        "input_series": [
            phase("wait", "0+15x40 _x60"),
            phase("update", "0+45x40 _x60"),
            finished("buffer-a", "0x40 1x60"),
            finished("buffer-b", "0x40 1x60"),
        ],
        "promql_expr_test": [
            {"expr": keda_query(), "eval_time": at, "exp_samples": samples}
            for at, samples in {
                "30m": [{"labels": "{}", "value": 0.25}],
                "90m": [{"labels": "{}", "value": 0}],
            }.items()
        ],
    }
    promtool(tmp_path, test)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on PATH (Debian: prometheus)")
def test_a_trainer_that_is_lost_while_the_run_goes_on_is_no_number(tmp_path: Path) -> None:
    """KEDA then counts an error, and falls back."""
    test = {
        "interval": "1m",
        "input_series": [phase("wait", "0+15x10 _x60"), finished("buffer-a", "0x70")],
        "promql_expr_test": [{"expr": keda_query(), "eval_time": "60m", "exp_samples": []}],
    }
    promtool(tmp_path, test)
