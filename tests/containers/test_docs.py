"""docs/containers.md names files, services, volumes and arguments that exist."""

import re

import yaml

from dapod import config
from tests.containers import dockerfile
from tests.containers.compose import mounts, project, services
from tests.containers.dockerfile import ROOT, SERVICES

PAGE = (ROOT / "docs" / "containers.md").read_text()
TEXT = PAGE + (ROOT / "docker-compose.yml").read_text().partition("\nname:")[0]
COMMANDS = re.findall(r"docker compose ((?:[^\s`#]+ ?)+)", TEXT)


def test_every_path_on_the_page_exists() -> None:
    paths = re.findall(r"(?<!/)\b(?:services|requirements|dapod|deploy|tests)/[\w./-]*\w", PAGE)
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_image_is_described_with_its_tag() -> None:
    described = set(re.findall(r"^\| `(dapod-[a-z]+:[\d.]+)`", PAGE, re.M))
    assert described == {
        f"dapod-{name}:{dockerfile.arguments(name)['VERSION']}" for name in SERVICES
    }


def test_every_service_and_profile_in_a_command_exists() -> None:
    options = re.compile(r"--(profile|scale)[ =](\w+)")
    assert len(COMMANDS) > 6
    for command in COMMANDS:
        for kind, name in options.findall(command):
            known = {p for s in services().values() for p in s.get("profiles", [])}
            assert name in (known if kind == "profile" else services()), command
        words = [w for w in options.sub("", command).split() if re.fullmatch(r"[a-z-]+", w)]
        named = [w for w in words[1:] if not w.startswith("-")]
        assert set(named) <= services().keys(), command


def test_nobody_is_told_to_start_the_gpu_services_beside_the_others() -> None:
    assert not any("--profile gpu" in command for command in COMMANDS)


def test_the_command_for_gpus_names_the_whole_run_with_one_trainer() -> None:
    for command in COMMANDS:
        named = set(command.split())
        if command.startswith("up") and "trainer-gpu" in named:
            parts = {"model", "valkey", "buffer", "reward", "prometheus"}
            assert named & services().keys() == {*parts, "rollout-gpu", "trainer-gpu"}


def test_every_writable_path_is_in_the_table() -> None:
    described = set(re.findall(r"^\| `(/[\w/]+)`", PAGE, re.M))
    written = {
        mount.target
        for name, service in services().items()
        if service["image"].startswith("dapod-")
        for mount in mounts(service)
        if not mount.read_only
    }
    assert described == written | {"/tmp", "/dev/shm"}


def test_volumes_on_the_page_are_those_of_the_project() -> None:
    removed = re.search(r"docker volume rm ([\w ]+)", PAGE)
    assert removed is not None
    names = {name.removeprefix(f"{project()['name']}_") for name in removed[1].split()}
    assert names <= project()["volumes"].keys()


def test_the_override_replaces_a_file_that_every_service_has() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    for name, changed in yaml.safe_load(block)["services"].items():
        (mount,) = mounts(changed)
        assert mount.target in {own.target for own in mounts(services()[name])}


def test_the_lease_time_is_the_configs() -> None:
    seconds = config.load(ROOT / "configs" / "quickstart.toml").buffer.lease_seconds
    assert f"`buffer.lease_seconds` ({seconds:.0f})" in PAGE
