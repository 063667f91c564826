"""What is refused before torch is loaded, and the statuses the launcher passes on."""

import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from dapod.environment import Environment
from dapod.model_files import model_bytes
from dapod.service import build
from services.trainer.checkpoint import KEEP, MODELS_PER_CHECKPOINT
from services.trainer.launch import _status, check
from tests.trainer.harness import make_config, write_config

REPOSITORY = Path(__file__).parents[2]
Usage = namedtuple("Usage", "total used free")


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


def a_disk_of(size, directory, monkeypatch):
    """Where nothing lies but what is in `directory`."""

    def usage(_):
        used = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        return Usage(size, used, size - used)

    monkeypatch.setattr(shutil, "disk_usage", usage)


def left_by_a_kill(run_dir, size):
    """Half a checkpoint and half a policy of a model of `size` bytes: holes, no bytes."""
    for place, models in (
        (run_dir / "checkpoints" / ".step-00000004.tmp", MODELS_PER_CHECKPOINT),
        (run_dir / "policies" / ".v4-0a1b2c3d.tmp", 1),
    ):
        place.mkdir(parents=True)
        (place / "half").touch()
        os.truncate(place / "half", models * size)
        yield place


def trainer_in(tmp_path, config, **extra):
    variables = {
        "DAPOD_CONFIG": str(write_config(config, tmp_path / "run.toml")),
        "DAPOD_RUN_DIR": str(tmp_path / "run"),
        "DAPOD_BUFFER_ADDRESS": "127.0.0.1:1",
        "DAPOD_OPS_PORT": "0",
        **extra,
    }
    return build("trainer", Environment(variables=variables))


def test_what_a_kill_left_of_a_checkpoint_and_of_a_policy_takes_no_room(
    tmp_path, tiny_model, monkeypatch
):
    """A restart that is refused fails a Kubernetes Job for good."""
    size = model_bytes(tiny_model)
    left = list(left_by_a_kill(tmp_path / "run", size))
    a_disk_of((KEEP + 1) * MODELS_PER_CHECKPOINT * size, tmp_path / "run", monkeypatch)
    check(trainer_in(tmp_path, make_config(tiny_model)))
    assert not any(place.exists() for place in left)


def test_only_the_first_node_removes_what_is_half_written(tmp_path, tiny_model):
    left = list(left_by_a_kill(tmp_path / "run", 1))
    nodes = {"DAPOD_TRAINER_NODES": "2", "DAPOD_TRAINER_MASTER": "127.0.0.1:29500"}
    config = make_config(tiny_model, trainer={"ranks": 2})
    check(trainer_in(tmp_path, config, DAPOD_TRAINER_NODE="1", **nodes))
    assert all(place.exists() for place in left)


@pytest.mark.parametrize(
    ("codes", "status"), [([1, 2], 2), ([1], 1), ([-9, -15], 137), ([-15, 1], 143)]
)
def test_a_ranks_status_becomes_the_services(codes, status):
    assert _status(codes) == status
