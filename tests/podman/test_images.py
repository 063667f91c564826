"""What the images hold, and what they do without: a compiler, root, the name of a user."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.podman.podman import SERVICES, image, pip_volumes, podman, settings

pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("images")]

LOCKED_DOWN = (
    "--read-only",
    "--tmpfs=/tmp:mode=1777",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
)
SOMEBODY = "--user=1000540000:0"
"""As OpenShift chooses: no entry in /etc/passwd, the group root."""
HEAVY = ("torch", "vllm", "deepspeed", "transformers")
NEEDED = {
    "buffer": (),
    "reward": (),
    "rollout": ("torch", "vllm", "transformers"),
    "trainer": ("torch", "deepspeed", "transformers"),
}
MEBIBYTES = {"buffer": 800, "reward": 500, "rollout": 2600, "trainer": 1800}
"""Most that an image may take, base and all."""


def in_image(service: str, code: str, *options: str, seconds: float = 300.0) -> str:
    """What a Python program prints in a fresh, locked down container."""
    options = ("--network=none", SOMEBODY, *options)
    return podman(
        *("run", "--rm", *LOCKED_DOWN, *options, image(service), "python", "-c", code),
        seconds=seconds,
    )


@contextmanager
def started(service: str, *command: str) -> Iterator[str]:
    """A container that runs `command`; gone with the block."""
    name = f"dapod-test-{uuid.uuid4().hex[:8]}"
    podman("run", "--detach", f"--name={name}", *LOCKED_DOWN, image(service), *command)
    try:
        yield name
    finally:
        podman("rm", "--force", "--time=1", name)


@pytest.mark.parametrize("service", SERVICES)
def test_no_compiler_is_in_it(service: str) -> None:
    names = ["cc", "gcc", "g++", "c++", "clang", "nvcc", "ld", "as", "make"]
    code = f"import shutil; print([n for n in {names} if shutil.which(n)])"
    assert in_image(service, code).strip() == "[]"


@pytest.mark.parametrize("service", SERVICES)
def test_heavy_libraries_are_only_where_they_are_used(service: str) -> None:
    code = (
        "import importlib.util, json\n"
        f"print(json.dumps([n for n in {(*HEAVY, 'pip')} if importlib.util.find_spec(n)]))"
    )
    pip = ("pip",) if service == "trainer" else ()
    assert set(json.loads(in_image(service, code))) == {*NEEDED[service], *pip}


@pytest.mark.parametrize("service", SERVICES)
def test_every_module_of_the_service_loads_for_any_user_on_a_read_only_disk(service: str) -> None:
    code = (
        "import importlib, pathlib, services\n"
        "root = pathlib.Path(services.__path__[0]).parent\n"
        f"for p in sorted((root / 'services/{service}').glob('*.py')):\n"
        "    name = '.'.join(p.relative_to(root).with_suffix('').parts)\n"
        "    importlib.import_module(name.removesuffix('.__init__'))\n"
        "    print(name)\n"
    )
    assert f"services.{service}.__main__" in in_image(service, code)


@pytest.mark.parametrize("service", SERVICES)
def test_byte_code_was_written_when_the_image_was_built(service: str) -> None:
    """Or every start would compile it anew, with nowhere to keep it."""
    code = (
        "import importlib.util, pathlib, struct\n"
        "for p in pathlib.Path('/opt/dapod').rglob('*.py'):\n"
        "    cached = pathlib.Path(importlib.util.cache_from_source(p))\n"
        "    _, stamp, size = struct.unpack('<III', cached.read_bytes()[4:16])\n"
        "    assert (stamp, size) == (int(p.stat().st_mtime), p.stat().st_size), p\n"
        "print('fresh')"
    )
    assert in_image(service, code).strip() == "fresh"


@pytest.mark.parametrize("service", SERVICES)
def test_it_is_as_small_as_we_say(service: str) -> None:
    size = int(podman("image", "inspect", "--format={{.Size}}", image(service)))
    assert size / 2**20 < MEBIBYTES[service]


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_dead_process_leaves_behind_is_reaped(service: str) -> None:
    leave = "import subprocess, time; subprocess.run(['sh', '-c', 'sleep 0.2 &']); time.sleep(60)"
    states = (
        "import pathlib\n"
        "print([p.read_text().split()[2] for p in pathlib.Path('/proc').glob('[0-9]*/stat')])"
    )
    with started(service, "python", "-c", leave) as name:
        for _ in range(50):
            seen = podman("exec", name, "python", "-c", states)
            # The init, the sleeper, and the one that looks.
            if seen.count("'") == 6:
                break
        assert "Z" not in seen and seen.count("'") == 6, seen


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_does_not_answer_is_unhealthy(service: str) -> None:
    (check,) = json.loads(podman("image", "inspect", image(service)))
    test = check["Healthcheck"]["Test"]
    assert test[0] == "CMD"
    done = subprocess.run(
        ["podman", "run", "--rm", *LOCKED_DOWN, image(service), *test[1:]],
        env=settings(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "not healthy" in done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_a_missing_config_is_one_sentence_and_exit_status_2(service: str) -> None:
    """The status goes through the init: Kubernetes' podFailurePolicy and people read it."""
    done = subprocess.run(
        ["podman", "run", "--rm", *LOCKED_DOWN, SOMEBODY, image(service)],
        env=settings(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot read the config /dapod/configs/run.toml" in done.stderr


@pytest.mark.parametrize(
    "name", ["integer", "gsm8k", "dapo_math", "math_verify", "reasoning_gym:chain_sum"]
)
def test_the_reward_image_has_what_every_verifier_needs(name: str) -> None:
    code = f"from services.reward.verifiers import load; load({name!r}); print('loaded')"
    assert in_image("reward", code).strip().endswith("loaded")


@pytest.mark.parametrize(
    ("service", "library"),
    [
        ("rollout", "vllm.v1.engine.async_llm"),
        ("trainer", "deepspeed"),
        ("buffer", "pyarrow.parquet"),
    ],
)
def test_heavy_libraries_load(service: str, library: str) -> None:
    """The services import them late, so the test above does not."""
    code = f"import os; os.environ['TORCHDYNAMO_DISABLE'] = '1'; import {library}; print('loaded')"
    assert in_image(service, code).strip().endswith("loaded")


def test_vllm_for_cpus_finds_lscpu() -> None:
    assert in_image("rollout", "import shutil; print(shutil.which('lscpu'))").strip() != "None"


def test_the_trainer_image_fetches_the_quickstart_model(tmp_path: Path) -> None:
    volume = f"dapod-test-{uuid.uuid4().hex[:8]}"
    mounts = [f"--volume={one}:ro" for one in pip_volumes(tmp_path)]
    (tmp_path / "pip.conf").chmod(0o644)
    directory = "/dapod/models/smollm2-135m-instruct"
    podman("volume", "create", volume)
    try:
        podman(
            *("run", "--rm", *LOCKED_DOWN, "--network=host", f"--volume={volume}:/dapod/models"),
            *(*mounts, image("trainer"), "python", "-m", "dapod.cli", "model", "fetch"),
            f"--dir={directory}",
            seconds=900,
        )
        place = Path(podman("volume", "inspect", "--format={{.Mountpoint}}", volume).strip())
        fetched = place / "smollm2-135m-instruct" / "model.safetensors"
        assert fetched.stat().st_size > 250e6
        assert fetched.stat().st_uid == 10001
    finally:
        podman("volume", "rm", volume)
