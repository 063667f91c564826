"""What is refused before torch is loaded, and the statuses the launcher passes on."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services.trainer.launch import _status
from tests.trainer.harness import make_config, write_config

REPOSITORY = Path(__file__).parents[2]


def start(tmp_path, config, **extra):
    """(exit status, stderr) of the service, in a process that cannot import torch."""
    forbidden = tmp_path / "forbidden"
    (forbidden / "torch").mkdir(parents=True)
    (forbidden / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')")
    environment = {
        **os.environ,
        "PYTHONPATH": str(forbidden),
        "DAPOD_CONFIG": str(write_config(config, tmp_path / "run.toml")),
        "DAPOD_RUN_DIR": str(tmp_path / "run"),
        "DAPOD_BUFFER_ADDRESS": "127.0.0.1:1",
        "DAPOD_OPS_PORT": "0",
        **extra,
    }
    environment.pop("RANK", None)
    done = subprocess.run(
        [sys.executable, "-m", "services.trainer"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def assert_refused(result, *words):
    status, said = result
    assert status == 2, said
    assert said.startswith("dapod: ") and said.count("\n") == 1
    assert all(word in said for word in words), said


def test_a_missing_model_is_refused_in_one_sentence_without_torch(tmp_path):
    assert_refused(start(tmp_path, make_config(tmp_path / "nowhere")), "model.path", "nowhere")


def test_a_context_too_short_for_the_responses_is_refused(tmp_path, tiny_model):
    config = make_config(
        tiny_model,
        sampling={"max_prompt_tokens": 200, "max_response_tokens": 200},
        trainer={"tokens_per_micro_batch": 400},
    )
    assert_refused(start(tmp_path, config), "the model's context is 256 tokens")


def test_a_port_in_use_is_refused(tmp_path, tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = start(tmp_path, make_config(tiny_model), DAPOD_OPS_PORT=port)
    assert_refused(result, "DAPOD_OPS_PORT", port)


def test_a_missing_buffer_address_is_refused(tmp_path, tiny_model):
    result = start(tmp_path, make_config(tiny_model), DAPOD_BUFFER_ADDRESS="")
    assert_refused(result, "DAPOD_BUFFER_ADDRESS")


def test_ranks_that_cannot_be_shared_out_to_the_nodes_are_refused(tmp_path, tiny_model):
    config = make_config(tiny_model, trainer={"ranks": 3})
    given = {"DAPOD_TRAINER_NODES": "2", "DAPOD_TRAINER_MASTER": "127.0.0.1:29500"}
    assert_refused(start(tmp_path, config, **given), "trainer.ranks (3)", "2 nodes")


@pytest.mark.parametrize(
    ("codes", "status"), [([1, 2], 2), ([1], 1), ([-9, -15], 137), ([-15, 1], 143)]
)
def test_a_ranks_status_becomes_the_services(codes, status):
    assert _status(codes) == status
