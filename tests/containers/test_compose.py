"""docker-compose.yml: what a service may do and is told, and that it is what k8s/ deploys."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from dapod import config
from dapod.environment import Environment
from tests.containers import dockerfile
from tests.containers.compose import OURS, mounts, project, services
from tests.containers.dockerfile import ROOT
from tests.k8s.manifests import KUBECTL, build, pods

NOT_RUN_HERE = ("rollout-gpu", "trainer-gpu", "grafana")
SERVED = [name for name in services() if name != "model"]


def image_of(name: str) -> str:
    """The service whose image it runs: rollout-gpu runs the rollout's."""
    return "trainer" if name == "model" else name.removesuffix("-gpu")


def told(name: str) -> dict[str, str]:
    """What the process finds: the image's variables and the file's."""
    return dockerfile.environment(image_of(name)) | services()[name].get("environment", {})


def test_the_file_has_the_whole_quickstart() -> None:
    assert set(services()) == {*OURS, "valkey", "prometheus", "grafana"}


@pytest.mark.parametrize("name", services())
def test_nobody_is_root_or_may_become_it_or_writes_outside_its_volumes(name: str) -> None:
    service = services()[name]
    assert re.fullmatch(r"[1-9]\d+:\d+", service["user"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all("size=" in one for one in service["tmpfs"])
    assert not {"privileged", "network_mode", "pid", "ipc", "cap_add", "devices"} & service.keys()
    for mount in mounts(service):
        assert mount.read_only or not mount.source.startswith("."), mount


@pytest.mark.parametrize("name", services())
def test_images_are_pinned_and_ours_have_our_version(name: str) -> None:
    image, _, tag = services()[name]["image"].rpartition(":")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.fullmatch(r"v?\d+\.\d+\.\d+(-cuda)?", tag)
    if name in OURS:
        assert image == f"dapod-{image_of(name)}"
        assert tag == version + ("-cuda" if name.endswith("-gpu") else "")
        assert services()[name]["build"]["dockerfile"] == f"services/{image_of(name)}/Dockerfile"
    else:
        assert "build" not in services()[name]


@pytest.mark.parametrize("name", OURS)
def test_every_build_argument_is_one_of_the_dockerfile(name: str) -> None:
    given = services()[name]["build"].get("args", {})
    assert given.keys() <= dockerfile.arguments(image_of(name)).keys()
    assert bool(given) == name.endswith("-gpu")
    if given:
        head = (ROOT / "services" / image_of(name) / "Dockerfile").read_text()
        assert all(f"--build-arg {key}={value}" in head for key, value in given.items())


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_one_that_the_code_reads(name: str) -> None:
    documented = (ROOT / "dapod" / "environment.py").read_text()
    for variable in services()[name].get("environment", {}):
        assert re.search(rf"\b{variable}\b", documented), variable


@pytest.mark.parametrize("name", [name for name in OURS if name != "model"])
def test_every_service_finds_what_it_must_have(name: str) -> None:
    given = Environment(variables=told(name))
    assert (given.ops_port, given.listen_host) == (8080, "0.0.0.0")
    target = {mount.target for mount in mounts(services()[name])}
    assert str(given.config_path) in target
    kind = image_of(name)
    if kind == "buffer":
        assert given.redis_url == "redis://valkey:6379/0"
    if kind in ("rollout", "trainer"):
        assert given.buffer_address == "dns:///buffer:50051"
        assert str(given.policy_dir) in target
    if kind in ("buffer", "reward"):
        assert given.grpc_port == 50051
    else:
        assert given.optional_grpc_port is None
    if kind == "rollout":
        assert given.reward_address == "dns:///reward:50051"
    if kind == "trainer":
        assert str(given.run_dir) in target


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not on PATH; it builds the manifests")
@pytest.mark.parametrize("name", [name for name in OURS if name != "model"])
def test_files_lie_where_pods_have_them(name: str) -> None:
    (pod,) = [one for one in pods(build("base")) if one.component == image_of(name)]
    (container,) = pod.containers
    theirs = {
        (mount["mountPath"], mount.get("readOnly", False))
        for mount in container["volumeMounts"]
        if mount["mountPath"].startswith("/dapod/")
    }
    assert {(one.target, one.read_only) for one in mounts(services()[name])} == theirs
    assert services()[name]["image"].removesuffix("-cuda") == container["image"]
    seconds = int(services()[name]["stop_grace_period"].removesuffix("s"))
    assert seconds == pod.spec["terminationGracePeriodSeconds"]
    assert ("shm_size" in services()[name]) == (
        "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}
    )


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not on PATH; it builds the manifests")
def test_the_model_is_fetched_and_valkey_started_as_in_the_demo() -> None:
    by_component = {pod.component: pod.containers[0] for pod in pods(build("cpu-demo"))}
    assert services()["model"]["command"] == by_component["model"]["args"]
    assert services()["valkey"]["image"] == by_component["valkey"]["image"]
    assert services()["valkey"]["entrypoint"] == by_component["valkey"]["command"]


def test_the_config_is_the_quickstart_and_finds_model_and_data() -> None:
    for name in OURS:
        if name != "model":
            files = {m.target: m.source for m in mounts(services()[name])}
            assert files["/dapod/configs/run.toml"] == "./configs/quickstart.toml"
    run = config.load(ROOT / "configs" / "quickstart.toml")
    volumes = {m.target: m.source for m in mounts(services()["buffer"])}
    data = f"configs/{Path(run.data.path).name}"
    assert volumes[f"/dapod/{data}"] == f"./{data}"
    assert services()["model"]["command"][-1].endswith(f"/models/{Path(run.model.path).name}")


def test_only_the_trainer_mounts_checkpoints_and_writes_policies() -> None:
    for name, service in services().items():
        used = {mount.source: mount for mount in mounts(service)}
        assert ("results" in used) == (image_of(name) == "trainer" and name != "model")
        if "policies" in used:
            assert used["policies"].read_only == (image_of(name) == "rollout")
        if "models" in used:
            assert used["models"].read_only == (name != "model")


def test_every_mount_is_a_file_of_ours_or_a_declared_volume() -> None:
    sources = {mount.source for service in services().values() for mount in mounts(service)}
    named = {source for source in sources if not source.startswith(".")}
    assert named == set(project()["volumes"])
    assert all((ROOT / source).exists() for source in sources - named)


def test_valkey_keeps_an_append_only_file_on_its_volume() -> None:
    used = {mount.target: mount.source for mount in mounts(services()["valkey"])}
    assert used == {"/etc/valkey/valkey.conf": "./deploy/redis.conf", "/data": "state"}
    settings = (ROOT / "deploy" / "redis.conf").read_text()
    assert "\nappendonly yes\n" in settings and "\ndir /data\n" in settings


@pytest.mark.parametrize("name", SERVED)
def test_everybody_who_serves_has_a_health_check_and_comes_back(name: str) -> None:
    service = services()[name]
    wanted = "on-failure:10" if image_of(name) == "trainer" else "unless-stopped"
    assert service["restart"] == wanted
    if name in OURS:
        assert "healthcheck" not in service, "the image has one"
    else:
        assert service["healthcheck"]["test"]


@pytest.mark.parametrize("name", services())
def test_services_start_in_any_order_and_wait_for_the_model_themselves(name: str) -> None:
    service = services()[name]
    # Podman restarts no container whose dependency has ended, as `model` does.
    assert "depends_on" not in service
    if name in OURS and name != "model":
        kind = image_of(name)
        own = json.loads(
            next(one.text for one in dockerfile.final_stage(kind) if one.word == "CMD")
        )
        if any(mount.source == "models" for mount in mounts(service)):
            waiting = f"python -m dapod.model_wait && exec {' '.join(own)}"
            assert service["command"] == ["sh", "-c", waiting]
        else:
            assert "command" not in service


def test_what_was_not_run_here_sits_in_a_profile_and_says_so() -> None:
    profiles = {name: s["profiles"] for name, s in services().items() if "profiles" in s}
    assert profiles == {"rollout-gpu": ["gpu"], "trainer-gpu": ["gpu"], "grafana": ["grafana"]}
    assert set(profiles) == set(NOT_RUN_HERE)
    text = (ROOT / "docker-compose.yml").read_text()
    comments = [
        re.sub(r"\s*\n\s*# ", " ", block) for block in re.findall(r"(?:^  #.*\n)+", text, re.M)
    ]
    assert sum("run here" in " ".join(one.split()) for one in comments) == 2


def test_a_gpu_is_reserved_where_one_is_used() -> None:
    for name, service in services().items():
        assert ("deploy" in service) == name.endswith("-gpu")
        if name.endswith("-gpu"):
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
            # Prometheus finds it under the name that its scrape config has.
            assert service["networks"] == {"run": {"aliases": [image_of(name)]}}


@pytest.mark.parametrize("name", services())
def test_what_is_compiled_into_temporary_files_can_be_loaded_on_gpus_and_nowhere_else(
    name: str,
) -> None:
    (temporary,) = services()[name]["tmpfs"]
    path, _, options = temporary.partition(":")
    assert path == "/tmp"
    # Docker's own default is noexec.
    assert ("exec" in options.split(",")) == name.endswith("-gpu")


def test_rollouts_can_be_scaled() -> None:
    fixed = {"container_name", "ports", "hostname"}
    assert not fixed & services()["rollout"].keys()
    assert "DAPOD_WORKER_ID" not in told("rollout"), "each has its host name"


def test_the_run_has_no_way_out() -> None:
    assert project()["networks"]["run"] == {"internal": True}
    for name, service in services().items():
        inside = set(service["networks"])
        if name == "model":
            assert inside == {"outside"}
        elif name in ("prometheus", "grafana"):
            assert inside == {"run", "outside"}
        else:
            assert inside == {"run"}


def test_ports_are_opened_on_loopback_only() -> None:
    opened = {name: s["ports"] for name, s in services().items() if "ports" in s}
    assert set(opened) == {"prometheus", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in opened.values() for port in ports)


def test_prometheus_and_grafana_are_given_what_deploy_ships() -> None:
    files: dict[str, Any] = {
        name: {m.target: m.source for m in mounts(services()[name])}
        for name in ("prometheus", "grafana")
    }
    assert files["prometheus"]["/etc/prometheus"] == "./deploy/prometheus"
    assert "--config.file=/etc/prometheus/prometheus.yml" in services()["prometheus"]["command"]
    grafana = files["grafana"]
    assert grafana["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"
    provider = (ROOT / "deploy/grafana/provisioning/dashboards/dapod.yml").read_text()
    folder = re.search(r"path: (\S+)", provider)
    assert folder is not None
    assert grafana[folder[1]] == "./deploy/grafana/dashboards"
    source = (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
    assert "url: http://prometheus:9090" in source
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "deploy/grafana/dashboards" / Path(home).name).exists()
