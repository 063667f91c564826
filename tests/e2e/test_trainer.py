"""The trainer service as processes: real torchrun and DeepSpeed, a scripted buffer opposite."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dapod.policy_store import PolicyStore, read_tensor_entries
from dapod.types import PolicyVersion
from services.trainer.checkpoint import CheckpointStore
from tests.trainer.doubles import ScriptedBuffer, make_group
from tests.trainer.gradient_cases import CASES
from tests.trainer.harness import (
    OF_THE_LIBRARIES,
    free_port,
    make_config,
    relative_error,
    write_config,
    write_tiny_model,
)
from tests.trainer.node_rank import FAILURE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600), *OF_THE_LIBRARIES]

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 240.0


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def environment(**extra: str) -> dict[str, str]:
    """This process's, with no compiler on PATH and few threads."""
    return {**os.environ, "PATH": "/nonexistent", "OMP_NUM_THREADS": "1", **extra}


def until(what: str, predicate: Callable[[], Any]) -> Any:
    """Waits for a predicate to hold, for at most `DEADLINE_SECONDS`."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if value := predicate():
            return value
        time.sleep(0.05)
    pytest.fail(f"timed out waiting until {what}")


class TrainerProcess:
    """`python -m services.trainer` in a run directory, or one of several nodes that share it."""

    def __init__(
        self, directory: Path, config: Any, buffer: str, *, node: int = 0, **variables: str
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.run_dir = directory / "run"
        self.port = free_port()
        self.log = directory / f"trainer-{node}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.trainer"],
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
                env=environment(
                    DAPOD_CONFIG=str(write_config(config, directory / f"run-{node}.toml")),
                    DAPOD_RUN_DIR=str(self.run_dir),
                    DAPOD_BUFFER_ADDRESS=buffer,
                    DAPOD_OPS_PORT=str(self.port),
                    DAPOD_TRAINER_NODE=str(node),
                    **variables,
                ),
            )

    def __enter__(self) -> "TrainerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=30)

    def wait(self) -> int:
        status = self.process.wait(timeout=DEADLINE_SECONDS)
        print(self.log.read_text())
        return status

    def ranks(self) -> list[int]:
        """Process ids of the ranks."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def rows(self, name: str = "steps.jsonl") -> list[dict[str, Any]]:
        file = self.run_dir / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def page(self, path: str) -> str:
        request = f"http://127.0.0.1:{self.port}/{path}"
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return ""


def script(steps: int, **options: Any) -> ScriptedBuffer:
    groups = [
        make_group(f"0-{i}", [1 + i % 7, 30, 4, 9], correct=[True, False, None, i % 2 == 0])
        for i in range(2 * steps)
    ]
    return ScriptedBuffer.of(groups, prompts_per_step=2, prompts_per_update=1, **options)


def config_for(model: Path, steps: int, **trainer: Any) -> Any:
    return make_config(
        model,
        run={"steps": steps},
        algorithm={"prompts_per_step": 2, "prompts_per_update": 1},
        trainer=trainer,
    )


def gradients(model: Path, other: Path, ranks: int, output: Path) -> dict[str, torch.Tensor]:
    """Of every case of `tests.trainer.gradient_cases`, as `case/update/parameter`."""
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"),
            *("--rdzv-backend=static", "--master-addr=127.0.0.1", f"--master-port={free_port()}"),
            *("-m", "tests.trainer.gradient_rank", str(model), str(other), str(output)),
        ],
        cwd=REPOSITORY,
        check=True,
        timeout=DEADLINE_SECONDS,
        env=environment(DS_ACCELERATOR="cpu"),
    )
    return load_file(output)


def test_two_ranks_have_the_gradient_of_one_under_every_option_and_zero_stage(tiny_model, tmp_path):
    other = write_tiny_model(tmp_path / "other", seed=1)
    one, two = (gradients(tiny_model, other, n, tmp_path / f"{n}.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    for case in CASES:
        name = f"{case}/statistics"
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6, msg=case)
        for update in "01":
            names = [name for name in one if name.startswith(f"{case}/{update}/")]
            assert names
            error = relative_error({n: one[n] for n in names}, {n: two[n] for n in names})
            assert error < 1e-5, (case, update)


def test_a_killed_trainer_replays_its_steps_to_the_same_bits(tiny_model, tmp_path):
    steps, config = 10, config_for(tiny_model, 10)
    with script(steps) as buffer:
        with TrainerProcess(tmp_path / "whole", config, buffer.address) as whole:
            assert whole.wait() == 0
        straight = list(buffer.committed)

    more = threading.Event()
    with script(steps, withhold=more, withhold_from=6) as buffer:
        with TrainerProcess(tmp_path / "killed", config, buffer.address) as first:
            until("6 steps are committed and have their rows", lambda: len(first.rows()) == 6)
            ranks = first.ranks()
            first.process.kill()
            until("its ranks are gone too", lambda: not any(map(alive, ranks)))
        more.set()
        with TrainerProcess(tmp_path / "killed", config, buffer.address) as second:
            assert second.wait() == 0
        assert [entry.digest for entry in buffer.committed] == [e.digest for e in straight]
        resumed_at = [policy.number for policy, _ in buffer.resumed]
        assert resumed_at == [0, 4]
        assert len({policy.lineage for policy, _ in buffer.resumed}) == 2

    assert [row["step"] for row in second.rows()] == list(range(steps))
    assert [row["step"] for row in second.rows("steps.superseded.jsonl")] == [4, 5]
    assert tensors(whole) == tensors(second)
    losses = [[row["loss"] for row in process.rows()] for process in (whole, second)]
    assert losses[0] == losses[1]


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def tensors(trainer: TrainerProcess) -> list[dict[str, str]]:
    """Checksums of the two newest versions, verified."""
    store = PolicyStore(trainer.run_dir / "policies")
    newest = sorted(store.versions(), key=lambda policy: policy.number)[-2:]
    for policy in newest:
        store.verify(policy)
    return [store.manifest(policy).tensors for policy in newest]


def test_two_nodes_train_and_publish_a_whole_model_with_zero_3(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    config = config_for(tiny_model, 3, ranks=2, zero_stage=3, checkpoint_every_steps=2)
    used = PolicyVersion(number=0, lineage="0")
    more = threading.Event()
    nodes = {
        "DAPOD_TRAINER_NODES": "2",
        "DAPOD_TRAINER_MASTER": f"127.0.0.1:{free_port()}",
    }
    with (
        script(3, in_use=[used], withhold=more, withhold_from=2) as buffer,
        TrainerProcess(tmp_path, config, buffer.address, **nodes) as trainer,
        TrainerProcess(tmp_path, config, buffer.address, node=1, **nodes) as second,
    ):
        until("node 1 waits as well", lambda: "the batch of step 2" in second.page("readyz"))
        assert second.page("healthz") == trainer.page("healthz") == '{"alive":true}'
        assert "dapod_trainer_step" in trainer.page("metrics")
        assert "dapod" not in second.page("metrics"), "there is one trainer"
        more.set()
        assert (trainer.wait(), second.wait()) == (0, 0)
        assert [entry.step for entry in buffer.committed] == [0, 1, 2]
        assert buffer.checkpointed == [2, 3]
        assert set(buffer.fetched) == {f"0-{i}" for i in range(6)}
    store = PolicyStore(trainer.run_dir / "policies")
    newest = store.versions()[-1]
    assert newest.number == 3
    published, base = store.verify(newest), tiny_model / "model.safetensors"
    assert shapes(published / "model.safetensors") == shapes(base)
    AutoModelForCausalLM.from_pretrained(published)
    assert [row["tokens_trained"] > 0 for row in trainer.rows()] == [True] * 3
    latest = CheckpointStore(trainer.run_dir / "checkpoints").latest()
    assert latest is not None and (latest.step, latest.ranks) == (3, 2)

    with script(3) as buffer:
        one = config_for(tiny_model, 4, ranks=1, zero_stage=3)
        with TrainerProcess(tmp_path, one, buffer.address) as refused:
            assert refused.wait() == 2
    assert "written by 2 ranks and this start has 1" in refused.log.read_text()


def shapes(file: Path) -> dict[str, Any]:
    return {entry.name: (entry.dtype, entry.shape) for entry in read_tensor_entries(file)}


def test_sigterm_ends_a_waiting_trainer_at_once_and_not_as_if_it_had_finished(tiny_model, tmp_path):
    with (
        script(2, withhold=threading.Event()) as buffer,
        TrainerProcess(tmp_path, config_for(tiny_model, 2), buffer.address) as trainer,
    ):
        page = until(
            "it says what it waits for",
            lambda: "groups are ready" in trainer.page("readyz") and trainer.page("readyz"),
        )
        assert json.loads(page)["ready"] is False
        assert 'dapod_trainer_phase_seconds_total{phase="wait"}' in trainer.page("metrics")
        began = time.monotonic()
        trainer.process.send_signal(signal.SIGTERM)
        assert trainer.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - began < 10


def test_a_start_that_the_buffer_refuses_is_one_sentence_and_exit_status_2(tiny_model, tmp_path):
    with script(2) as buffer:
        buffer.refuses_resume = "run.config_digest: this buffer serves 'a', not 'b'"
        config = config_for(tiny_model, 2, ranks=2)
        with TrainerProcess(tmp_path, config, buffer.address) as trainer:
            assert trainer.wait() == 2
    said = trainer.log.read_text()
    assert f"dapod: the buffer refuses this trainer: {buffer.refuses_resume}\n" in said
    assert "_InactiveRpcError" not in said


def test_a_rank_that_fails_ends_every_node(tmp_path):
    port = str(free_port())
    launchers = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.trainer.node_rank"),
                *(str(node), "2", port, str(tmp_path)),
            ],
            cwd=REPOSITORY,
            env=environment(),
        )
        for node in (0, 1)
    ]
    try:
        assert [one.wait(timeout=DEADLINE_SECONDS) for one in launchers] == [1, FAILURE]
    finally:
        for one in launchers:
            one.kill()
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert said == [{"met": [0, 1], "local": "0"}] * 2


def test_a_rank_that_dies_ends_the_trainer_with_an_error(tiny_model, tmp_path):
    with (
        script(2, withhold=threading.Event()) as buffer,
        TrainerProcess(tmp_path, config_for(tiny_model, 2, ranks=2), buffer.address) as trainer,
    ):
        until("it waits for a batch", lambda: "groups are ready" in trainer.page("readyz"))
        os.kill(trainer.ranks()[1], signal.SIGKILL)
        assert trainer.wait() not in (0, 2)
