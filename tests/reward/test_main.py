"""The service as a process: `python -m services.reward`."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dapod.health import Health
from dapod.rpc import channel
from dapod.tls import Tls
from dapod.v1 import reward_pb2, reward_pb2_grpc
from services.reward.__main__ import report
from services.reward.pool import VerifierPool
from tests.dapod.certificates import Authority

ROOT = Path(__file__).parents[2]
QUICKSTART = (ROOT / "configs" / "quickstart.toml").read_text()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """Start the service on free ports; killed at the end if it still runs."""
    processes = []

    def run(config=QUICKSTART, **variables):
        (tmp_path / "run.toml").write_text(config)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DAPOD_CONFIG": str(tmp_path / "run.toml"),
            "DAPOD_GRPC_PORT": str(free_port()),
            "DAPOD_OPS_PORT": str(free_port()),
            **variables,
        }
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "services.reward"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, int(environment["DAPOD_GRPC_PORT"]), int(environment["DAPOD_OPS_PORT"])

    yield run
    for process in processes:
        process.kill()
        process.communicate(timeout=10)


def page(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def test_it_serves_scores_and_pages_and_leaves_with_status_0(start, eventually):
    process, grpc_port, ops_port = start()
    eventually(lambda: page(ops_port, "/readyz")[0] == 200, "the service is ready")
    assert (
        json.loads(page(ops_port, "/readyz")[1])["activity"] == "1 of 1 verifier workers are warm"
    )
    with channel(f"127.0.0.1:{grpc_port}") as connection:
        stub = reward_pb2_grpc.RewardServiceStub(connection)
        reply = stub.Score(
            reward_pb2.ScoreRequest(
                verifier="integer",
                answer="12",
                responses=[reward_pb2.Response(text="12", tokens=2)],
            ),
            timeout=20,
            wait_for_ready=True,
        )
        health = health_pb2_grpc.HealthStub(connection).Check(
            health_pb2.HealthCheckRequest(), timeout=20
        )
    assert reply.verdicts[0].reward == 1.0
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    metrics = page(ops_port, "/metrics")[1]
    counted = 'dapod_reward_verifications_total{outcome="correct",verifier="integer"} 1.0'
    assert counted in metrics
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert page(ops_port, "/healthz") == (0, "")


def test_with_a_certificate_it_serves_over_tls_and_is_probed_in_plaintext(
    start, eventually, tmp_path
):
    tls_dir, health_port = tmp_path / "tls", free_port()
    Authority().issue(tls_dir)
    process, grpc_port, ops_port = start(
        DAPOD_TLS_DIR=str(tls_dir), DAPOD_HEALTH_PORT=str(health_port)
    )
    eventually(lambda: page(ops_port, "/readyz")[0] == 200, "the service is ready")
    request = health_pb2.HealthCheckRequest()
    for address, tls in ((grpc_port, Tls(tls_dir)), (health_port, None)):
        with channel(f"127.0.0.1:{address}", tls) as connection:
            stub = health_pb2_grpc.HealthStub(connection)
            reply = stub.Check(request, timeout=20, wait_for_ready=True)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    check = subprocess.run(
        [sys.executable, "-m", "dapod.healthcheck"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DAPOD_OPS_PORT": str(ops_port)},
        timeout=30,
        check=False,
    )
    assert check.returncode == 0
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_without_the_certificate_it_was_told_of_it_ends_with_one_sentence(start, tmp_path):
    process, _, _ = start(DAPOD_TLS_DIR=str(tmp_path / "tls"))
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith(f"dapod: DAPOD_TLS_DIR={tmp_path}/tls: cannot read tls")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "reasoning_gym:chain_sun",
            "dapod: data.verifier = 'reasoning_gym:chain_sun': reasoning-gym has no data set "
            "'chain_sun'; use chain_sum or decimal_chain_sum",
        ),
        (
            "python:nowhere:judge",
            "dapod: data.verifier = 'python:nowhere:judge': importing 'nowhere' failed with "
            "ModuleNotFoundError: No module named 'nowhere'; it must be installed, on PYTHONPATH "
            "or in the service's working directory",
        ),
    ],
)
def test_a_verifier_that_does_not_load_ends_it_with_one_sentence(start, name, sentence):
    process, _, _ = start(QUICKSTART.replace('verifier = "integer"', f'verifier = "{name}"'))
    _, said = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said.splitlines()[-1] == sentence


def test_while_a_verifier_loads_it_says_so_and_leaves_at_once_when_told(
    start, eventually, tmp_path, slow_to_load
):
    config = QUICKSTART.replace('verifier = "integer"', f'verifier = "{slow_to_load}"')
    process, _, ops_port = start(config, PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path)]))
    said = "'python:slow:judge' is loading, for 600 s at most"
    eventually(lambda: said in page(ops_port, "/readyz")[1], "it says what it waits for")
    assert page(ops_port, "/readyz")[0] == 503
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert f"the verifier {said}" in log


def test_without_a_warm_worker_it_is_not_ready_and_says_why(metrics):
    health = Health()
    pool = VerifierPool(
        verifiers=["integer"], workers=2, deadline_seconds=1, memory_bytes=1 << 26, metrics=metrics
    )
    report(health, pool)  # never started
    assert not health.state.ready
    assert health.state.activity == "0 of 2 verifier workers are warm"
