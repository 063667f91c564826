"""The command that an image's HEALTHCHECK runs, against a real service's pages."""

import os
import subprocess
import sys

from dapod import config as configuration
from dapod.cli.ports import free_ports
from dapod.health import Health
from dapod.ops import OpsServer, build_app
from tests.dapod.test_ops import QUICKSTART


def check(port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dapod.healthcheck"],
        env={**os.environ, "DAPOD_OPS_PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_service_that_waits_for_another_one_is_healthy() -> None:
    health = Health()
    health.waiting("the buffer is away")
    app = build_app(health=health, config=configuration.load(QUICKSTART), registries=[])
    with OpsServer(app, "127.0.0.1", 0) as server:
        done = check(server.port)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_that_does_not_answer_is_not_and_the_reason_is_said() -> None:
    (port,) = free_ports(1)
    done = check(port)
    assert done.returncode == 1
    assert done.stderr.startswith("dapod: not healthy: ") and "refused" in done.stderr


def test_it_imports_nothing_of_ours_but_itself() -> None:
    code = (
        "import sys, dapod.healthcheck\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] == 'dapod'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['dapod', 'dapod.healthcheck']"
