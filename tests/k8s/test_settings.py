"""What pods are told: variables that the code reads, ports that it opens, configs that it takes."""

import re

import pytest

from dapod import config
from dapod.config import RunConfig
from dapod.environment import Environment
from services.trainer.node import Node
from tests.k8s.manifests import (
    OVERLAYS,
    ROOT,
    Manifest,
    Pod,
    build,
    environment,
    mebibytes,
    named,
    of_kind,
    pods,
)

Manifests = tuple[Manifest, ...]

LIBRARIES = {
    "HOME": "pip, torch and vLLM cache beneath it",
    "USER": "torch names a folder after it",
    "HF_HUB_OFFLINE": "huggingface_hub",
    "VLLM_NO_USAGE_STATS": "vLLM",
    "DO_NOT_TRACK": "vLLM",
    "OMP_WAIT_POLICY": "OpenMP",
    "KMP_BLOCKTIME": "Intel's OpenMP, which vLLM's CPU build uses",
    "TOKENIZERS_PARALLELISM": "tokenizers",
    "PIP_NO_CACHE_DIR": "pip",
}
"""Variables that others read, and who."""


def documented() -> set[str]:
    text = (ROOT / "dapod" / "environment.py").read_text()
    return set(re.findall(r"\bDAPOD_[A-Z_]+\b", text))


def mounted(manifests: Manifests, container: Manifest, pod: Pod) -> dict[str, str]:
    """Files that a container finds from ConfigMaps: path -> text."""
    sources = {volume["name"]: volume for volume in pod.spec["volumes"]}
    files = {}
    for mount in container["volumeMounts"]:
        if "configMap" in sources[mount["name"]]:
            name = sources[mount["name"]]["configMap"]["name"]
            data = named(manifests, "ConfigMap", name)["data"]
            if "subPath" in mount:
                files[mount["mountPath"]] = data[mount["subPath"]]
            else:
                files.update({f"{mount['mountPath']}/{key}": data[key] for key in data})
    return files


def run_config(manifests: Manifests, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The config as pods read it, at a path of the same depth as theirs."""
    folder = tmp_path_factory.mktemp("dapod") / "configs"
    folder.mkdir()
    file = folder / "run.toml"
    file.write_text(named(manifests, "ConfigMap", "run")["data"]["run.toml"])
    return config.load(file)


def test_every_variable_is_one_that_somebody_reads(manifests: Manifests) -> None:
    known = documented() | set(LIBRARIES)
    for pod in pods(manifests):
        for container in pod.all_containers:
            unknown = set(environment(manifests, container)) - known
            assert not unknown, f"{pod.owner}: {unknown}"


def test_every_service_finds_what_it_must_have(manifests: Manifests) -> None:
    needed = {
        "buffer": {"DAPOD_REDIS_URL", "DAPOD_GRPC_PORT"},
        "reward": {"DAPOD_GRPC_PORT"},
        "rollout": {"DAPOD_BUFFER_ADDRESS", "DAPOD_REWARD_ADDRESS", "DAPOD_POLICY_DIR"},
        "trainer": {"DAPOD_BUFFER_ADDRESS", "DAPOD_RUN_DIR", "DAPOD_POLICY_DIR"},
    }
    for pod in pods(manifests):
        if pod.component in needed:
            given = environment(manifests, pod.containers[0])
            always = {"DAPOD_CONFIG", "DAPOD_OPS_PORT", "DAPOD_LISTEN_HOST"}
            assert needed[pod.component] | always <= given.keys(), pod.owner
            assert given["DAPOD_LISTEN_HOST"] == "0.0.0.0"


def test_the_rollouts_debugging_rpcs_are_off(manifests: Manifests) -> None:
    for pod in pods(manifests):
        if pod.component == "rollout":
            variables = environment(manifests, pod.containers[0])
            assert Environment(variables=variables).optional_grpc_port is None


def test_ports_are_those_that_the_services_open(manifests: Manifests) -> None:
    for pod in pods(manifests):
        if pod.component in ("rollout", "reward", "buffer", "trainer"):
            given = Environment(variables=environment(manifests, pod.containers[0]))
            opened = {"ops": given.ops_port}
            if given.optional_grpc_port is not None:
                opened["grpc"] = given.optional_grpc_port
            if given.health_port is not None:
                opened["health"] = given.health_port
            ports = {p["name"]: p["containerPort"] for p in pod.containers[0].get("ports", [])}
            assert ports == opened, pod.owner
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = pod.containers[0].get(probe, {}).get("grpc", {}).get("port")
                # Beside a certificate health has a port of its own: probes show none.
                assert port in (None, opened.get("health" if given.tls_dir else "grpc"))


def test_services_forward_to_ports_that_their_pods_name(manifests: Manifests) -> None:
    for service in of_kind(manifests, "Service"):
        for pod in pods(manifests):
            if service["spec"]["selector"].items() <= pod.labels.items():
                ports = {p["name"]: p["containerPort"] for p in pod.containers[0]["ports"]}
                for port in service["spec"]["ports"]:
                    assert ports[port["targetPort"]] == port["port"], service["metadata"]["name"]


def test_addresses_name_services_that_exist(manifests: Manifests) -> None:
    ports = {
        s["metadata"]["name"]: {p["port"] for p in s["spec"]["ports"]}
        for s in of_kind(manifests, "Service")
    }
    for pod in pods(manifests):
        for container in pod.all_containers:
            for name, value in environment(manifests, container).items():
                if name.endswith("_ADDRESS"):
                    host, _, port = value.removeprefix("dns:///").partition(":")
                    assert int(port) in ports[host], f"{pod.owner}: {name}"
                if name == "DAPOD_REDIS_URL" and value:
                    host, _, port = value.removeprefix("redis://").partition(":")
                    assert int(port.partition("/")[0]) in ports[host]


def test_the_config_is_where_every_service_looks_for_it(manifests: Manifests) -> None:
    for pod in pods(manifests):
        for container in pod.all_containers:
            wanted = environment(manifests, container).get("DAPOD_CONFIG")
            if wanted:
                assert wanted in mounted(manifests, container, pod), pod.owner


def test_files_of_a_config_map_are_mounted_one_by_one(manifests: Manifests) -> None:
    """In a mounted folder they are links into another one, and `..` in the config goes astray."""
    for pod in pods(manifests):
        for container in pod.all_containers:
            for mount in container["volumeMounts"]:
                assert mount["name"] != "run" or "subPath" in mount, pod.owner


def test_config_maps_are_asked_for_by_the_names_they_have(manifests: Manifests) -> None:
    """With their hash: another content is another name, and pods of before keep the old one."""
    made = {m["metadata"]["name"] for m in of_kind(manifests, "ConfigMap")}
    for pod in pods(manifests):
        asked = {v["configMap"]["name"] for v in pod.spec["volumes"] if "configMap" in v}
        for container in pod.all_containers:
            asked |= {s["configMapRef"]["name"] for s in container.get("envFrom", [])}
        assert asked <= made, pod.owner


def test_our_config_takes_every_key(
    manifests: Manifests, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_config(manifests, tmp_path_factory)


def test_model_and_data_are_where_the_config_says(
    manifests: Manifests, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = run_config(manifests, tmp_path_factory)
    buffer = next(p for p in pods(manifests) if p.component == "buffer")
    container = buffer.containers[0]
    mounts = {m["mountPath"] for m in container["volumeMounts"] if m["name"] == "models"}
    assert mounts == {"/dapod/models"}
    assert run.model.path.rpartition("/")[0].endswith("/models")
    folder, data = run.data.path.split("/")[-2:]
    on_volume = folder == "models"
    assert on_volume or f"/dapod/configs/{data}" in mounted(manifests, container, buffer)


@pytest.mark.parametrize("overlay", ["base", "cpu-demo"])
def test_the_demo_trains_the_quickstart_byte_for_byte(overlay: str) -> None:
    data = named(build(overlay), "ConfigMap", "run")["data"]
    assert data["run.toml"] == (ROOT / "configs" / "quickstart.toml").read_text()
    rows = "one_digit_arithmetic.jsonl"
    assert data[rows] == (ROOT / "configs" / rows).read_text()


def test_the_demo_fetches_the_model_that_its_config_names(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    manifests = build("cpu-demo")
    run = run_config(manifests, tmp_path_factory)
    (container,) = named(manifests, "Job", "model")["spec"]["template"]["spec"]["containers"]
    assert container["args"][-1] == f"--dir=/dapod/models/{run.model.path.rpartition('/')[2]}"


def valkey_settings(manifests: Manifests) -> dict[str, str]:
    text = named(manifests, "ConfigMap", "valkey")["data"]["valkey.conf"]
    lines = (line.split(None, 1) for line in text.splitlines() if line and line[0] != "#")
    valkey = next(p for p in pods(manifests) if p.component == "valkey")
    # What stands on the command line goes before the file's.
    _, _, *own = valkey.containers[0]["command"]
    names = (name.removeprefix("--") for name in own[::2])
    return {line[0]: line[1] for line in lines} | dict(zip(names, own[1::2], strict=True))


@pytest.mark.parametrize("overlay", ["base", *OVERLAYS])
def test_valkey_can_hold_the_run_and_fork(
    overlay: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    manifests = build(overlay)
    settings = valkey_settings(manifests)
    assert settings["appendonly"] == "yes"
    assert settings["maxmemory-policy"] == "noeviction"
    megabytes = int(settings["maxmemory"].removesuffix("mb"))
    run = run_config(manifests, tmp_path_factory)
    needed = run.live_payload_steps * run.algorithm.prompts_per_step * run.group_bytes
    assert needed <= megabytes * 2**20
    (container,) = named(manifests, "StatefulSet", "valkey")["spec"]["template"]["spec"][
        "containers"
    ]
    assert mebibytes(container["resources"]["limits"]["memory"]) >= 2 * megabytes


def test_verifiers_fit_the_reward_pods_memory(
    manifests: Manifests, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = run_config(manifests, tmp_path_factory)
    reward = next(p for p in pods(manifests) if p.component == "reward")
    limit = mebibytes(reward.containers[0]["resources"]["limits"]["memory"])
    assert run.reward.workers * run.reward.memory_mib + 256 <= limit


def test_the_engines_cache_fits_the_rollout_pods_memory(
    manifests: Manifests, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = run_config(manifests, tmp_path_factory)
    rollout = next(p for p in pods(manifests) if p.component == "rollout")
    limit = mebibytes(rollout.containers[0]["resources"]["limits"]["memory"])
    assert 1024 * run.rollout.memory_gib + 2048 <= limit


GPU_OVERLAYS = ("multi-node", "single-node-gpu")


@pytest.mark.parametrize("overlay", GPU_OVERLAYS)
def test_every_rank_and_every_engine_has_its_gpus(
    overlay: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = run_config(build(overlay), tmp_path_factory)
    (trainer,) = [p for p in pods(build(overlay)) if p.component == "trainer"]
    given = Environment(variables=environment(build(overlay), trainer.containers[0]))
    ranks = Node.of(given, run.trainer.ranks).ranks
    wanted = {"trainer": ranks, "rollout": run.rollout.tensor_parallel}
    for pod in pods(build(overlay)):
        limits = pod.containers[0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == wanted.get(pod.component), pod.owner
        tolerated = {t["key"] for t in pod.spec.get("tolerations", [])}
        assert ("nvidia.com/gpu" in tolerated) == (pod.component in wanted)


@pytest.mark.parametrize("overlay", GPU_OVERLAYS)
def test_gpu_overlays_share_weights_between_nodes(overlay: str) -> None:
    for claim in of_kind(build(overlay), "PersistentVolumeClaim"):
        if claim["metadata"]["name"] in ("models", "policies"):
            assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(build(overlay)):
        assert not pod.spec.get("affinity"), pod.owner
        if pod.component in ("trainer", "rollout"):
            assert all(c["image"].endswith("-cuda") for c in pod.all_containers)
