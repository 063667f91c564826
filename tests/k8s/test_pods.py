"""Our own rules for every pod: what a cluster lets it do, how it is probed, and how it ends."""

import ast
import re
from pathlib import Path

import pytest

from tests.k8s.manifests import (
    ROOT,
    Manifest,
    build,
    environment,
    jobs,
    mebibytes,
    of_kind,
    pods,
)

SERVICES = ("rollout", "reward", "buffer", "trainer")
CALLED = ("reward", "buffer", "valkey")
"""Those behind a Service that somebody calls."""
Manifests = tuple[Manifest, ...]


def constant(module: str, name: str) -> float:
    """A number at the top of a service's file, without importing it and its libraries."""
    tree = ast.parse((ROOT / module).read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return float(ast.literal_eval(node.value))
    raise KeyError(name)


def test_pod_security_restricted_holds_for_every_pod(manifests: Manifests) -> None:
    for pod in pods(manifests):
        security = pod.spec["securityContext"]
        assert security["runAsNonRoot"] is True, pod.owner
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys()
        for volume in pod.spec["volumes"]:
            assert volume.keys() & {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
        for container in pod.all_containers:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, pod.owner
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert not {"privileged", "runAsUser"} & security.keys()


def test_the_namespace_asks_for_what_its_pods_keep(manifests: Manifests) -> None:
    (namespace,) = of_kind(manifests, "Namespace")
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_root_file_systems_are_read_only_and_temporary_files_have_a_limit(
    manifests: Manifests,
) -> None:
    for pod in pods(manifests):
        for container in pod.all_containers:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, pod.owner
        for volume in pod.spec["volumes"]:
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"], f"{pod.owner}: {volume['name']}"


def test_python_finds_a_place_for_temporary_files_and_a_home(manifests: Manifests) -> None:
    for pod in pods(manifests):
        for container in pod.all_containers:
            if container["image"].startswith("dapod-"):
                assert environment(manifests, container)["HOME"] == "/tmp"
                assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_nobody_can_speak_to_the_api_server(manifests: Manifests) -> None:
    accounts = {a["metadata"]["name"]: a for a in of_kind(manifests, "ServiceAccount")}
    for pod in pods(manifests):
        assert pod.spec["serviceAccountName"] in accounts, pod.owner
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["enableServiceLinks"] is False
    assert all(a["automountServiceAccountToken"] is False for a in accounts.values())
    assert sorted(accounts) == sorted({pod.spec["serviceAccountName"] for pod in pods(manifests)})
    kinds = {m["kind"] for m in manifests}
    assert not kinds & {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}


def test_every_container_asks_for_memory_and_is_limited_in_it(manifests: Manifests) -> None:
    for pod in pods(manifests):
        for container in pod.all_containers:
            requests, limits = (container["resources"][key] for key in ("requests", "limits"))
            assert mebibytes(requests["memory"]) <= mebibytes(limits["memory"]), pod.owner
            assert requests["cpu"]
            # Throttled OpenMP threads hold the others up.
            assert "cpu" not in limits, pod.owner


def test_the_demo_fits_the_machine_that_the_docs_name() -> None:
    requests = [c["resources"]["requests"] for p in pods(build("cpu-demo")) for c in p.containers]
    assert sum(int(one["cpu"].removesuffix("m")) for one in requests) <= 1000
    # Of 12: the node's own pods have the rest.
    assert sum(mebibytes(one["memory"]) for one in requests) <= 11 * 1024


def test_the_demos_conversion_is_given_the_memory_it_takes() -> None:
    (model,) = [pod for pod in pods(build("cpu-demo")) if pod.component == "model"]
    measured = 1565  # MiB, resident, at most
    assert mebibytes(model.containers[0]["resources"]["requests"]["memory"]) > 1.1 * measured


def test_what_is_written_to_shared_memory_fits_the_containers_memory(manifests: Manifests) -> None:
    for pod in pods(manifests):
        memory = sum(mebibytes(c["resources"]["limits"]["memory"]) for c in pod.containers)
        for volume in pod.spec["volumes"]:
            if volume.get("emptyDir", {}).get("medium") == "Memory":
                assert 2 * mebibytes(volume["emptyDir"]["sizeLimit"]) <= memory, pod.owner


def test_images_are_pinned_and_ours_are_of_this_version(manifests: Manifests) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    for pod in pods(manifests):
        for container in pod.all_containers:
            name, _, tag = container["image"].rpartition(":")
            assert re.fullmatch(r"\d+\.\d+\.\d+(-[a-z0-9]+)?", tag), container["image"]
            assert "imagePullPolicy" not in container
            if name.startswith("dapod-"):
                assert name.removeprefix("dapod-") in SERVICES
                assert tag.partition("-")[0] == version[1], container["image"]


def test_process_1_of_our_images_is_their_init_which_passes_sigterm_on(
    manifests: Manifests,
) -> None:
    """`command` would replace it (it is all of the ENTRYPOINT: tests/containers); `args` do not.
    Python as process 1 ignores SIGTERM, and the pod would end at the end of its grace period."""
    for pod in pods(manifests):
        for container in pod.all_containers:
            if container["image"].startswith("dapod-"):
                assert "command" not in container, f"{pod.owner}: {container['name']}"


def test_every_running_container_is_probed(manifests: Manifests) -> None:
    for pod in pods(manifests):
        if pod.component == "model":
            continue  # it runs to its end, which has a deadline
        for container in pod.containers:
            assert "startupProbe" in container, pod.owner
            assert "livenessProbe" in container, pod.owner
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in container:
                    assert container[probe]["timeoutSeconds"] > 1, "1 s is the default"


def test_who_is_called_or_samples_says_when_it_is_ready(manifests: Manifests) -> None:
    for pod in pods(manifests):
        ready = "readinessProbe" in pod.containers[0]
        assert ready == (pod.component in (*CALLED, "rollout")), pod.owner


def test_liveness_depends_on_nobody_else(manifests: Manifests) -> None:
    for pod in pods(manifests):
        liveness = pod.containers[0].get("livenessProbe")
        if pod.component in SERVICES:
            assert liveness["httpGet"] == {"path": "/healthz", "port": "ops"}, pod.owner
            assert liveness["failureThreshold"] * liveness["periodSeconds"] >= 60
        elif liveness:
            assert liveness["tcpSocket"] == {"port": "redis"}


def test_probed_pages_exist() -> None:
    served = (ROOT / "dapod" / "ops.py").read_text()
    for pod in pods(build("base")):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            page = pod.containers[0].get(probe, {}).get("httpGet", {}).get("path")
            assert page is None or f'@app.get("{page}")' in served


@pytest.mark.parametrize(
    ("component", "drains"),
    [("buffer", ["DRAIN_SECONDS"]), ("reward", ["DRAIN_SECONDS"])],
)
def test_grace_is_longer_than_all_that_is_waited_for(component: str, drains: list[str]) -> None:
    pod = next(p for p in pods(build("base")) if p.component == component)
    waits = pod.containers[0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    waits += sum(constant(f"services/{component}/__main__.py", name) for name in drains)
    assert pod.spec["terminationGracePeriodSeconds"] >= waits + 10


def test_a_reward_pod_has_time_to_load_a_verifier_of_training_and_one_of_evaluation(
    manifests: Manifests,
) -> None:
    needed = 2 * constant("services/reward/nursery.py", "LOAD_SECONDS")
    for pod in pods(manifests):
        if pod.component == "reward":
            probe = pod.containers[0]["startupProbe"]
            assert probe["failureThreshold"] * probe["periodSeconds"] > needed


def test_a_rollout_has_time_to_give_its_leases_back_and_end_its_engine(
    manifests: Manifests,
) -> None:
    needed = constant("services/rollout/buffer_client.py", "RETURN_SECONDS") + constant(
        "services/rollout/vllm_engine.py", "STOP_SECONDS"
    )
    for pod in pods(manifests):
        if pod.component == "rollout":
            assert pod.spec["terminationGracePeriodSeconds"] >= 2 * needed


def test_disruption_budgets_let_every_drain_through(manifests: Manifests) -> None:
    budgets = of_kind(manifests, "PodDisruptionBudget")
    assert {b["metadata"]["name"] for b in budgets} == {"buffer", "reward", "rollout"}
    for budget in budgets:
        # minAvailable of a single pod would block a drain for ever.
        assert budget["spec"]["maxUnavailable"] in (1, "25%")
        assert "minAvailable" not in budget["spec"]
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_every_pod_has_a_priority_class_that_exists(manifests: Manifests) -> None:
    classes = {c["metadata"]["name"]: c for c in of_kind(manifests, "PriorityClass")}
    for pod in pods(manifests):
        if pod.component != "model":
            assert pod.spec["priorityClassName"] in classes, pod.owner
    values = [classes[f"dapod-{name}"]["value"] for name in ("state", "trainer", "rollout")]
    assert values == sorted(values, reverse=True)
    assert all(c["preemptionPolicy"] == "Never" for c in classes.values())


def test_a_pod_that_waits_for_a_node_makes_the_cluster_autoscaler_add_one(
    manifests: Manifests,
) -> None:
    for priority in of_kind(manifests, "PriorityClass"):
        # The default of its --expendable-pods-priority-cutoff: pods below it do not count.
        assert priority["value"] >= -10, priority["metadata"]["name"]


def test_only_the_trainer_mounts_the_volume_with_pickle(manifests: Manifests) -> None:
    for pod in pods(manifests):
        claims = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod.spec["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert ("trainer" in claims) == (pod.component == "trainer"), pod.owner
        existing = {c["metadata"]["name"] for c in of_kind(manifests, "PersistentVolumeClaim")}
        assert claims <= existing


def test_weights_are_read_only_for_who_only_reads_them(manifests: Manifests) -> None:
    writers = {"models": {"model"}, "policies": {"trainer"}}
    for pod in pods(manifests):
        for container in pod.all_containers:
            for mount in container["volumeMounts"]:
                for writer in [writers.get(mount["name"])]:
                    if writer is not None and pod.component not in writer:
                        assert mount["readOnly"] is True, f"{pod.owner}: {mount['name']}"


def test_pods_that_share_a_volume_of_one_node_stay_together(manifests: Manifests) -> None:
    once = {
        claim["metadata"]["name"]
        for claim in of_kind(manifests, "PersistentVolumeClaim")
        if claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    }
    for pod in pods(manifests):
        claims = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod.spec["volumes"]
            if "persistentVolumeClaim" in volume
        }
        if claims & once & {"models", "policies"}:
            (term,) = pod.spec["affinity"]["podAffinity"][
                "requiredDuringSchedulingIgnoredDuringExecution"
            ]
            assert term["topologyKey"] == "kubernetes.io/hostname"
            (expression,) = term["labelSelector"]["matchExpressions"]
            # Its own label too, or the first pod would find nobody to be beside.
            assert pod.component in expression["values"], pod.owner


def test_the_trainer_is_replaced_only_when_it_is_gone(manifests: Manifests) -> None:
    for job in jobs(manifests):
        if job["metadata"]["name"].startswith("trainer"):
            assert job["spec"]["podReplacementPolicy"] == "Failed"
            assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_preemption_is_no_failure_and_a_users_mistake_is_final(manifests: Manifests) -> None:
    (job,) = [j for j in jobs(manifests) if j["metadata"]["name"].startswith("trainer")]
    disrupted, refused = job["spec"]["podFailurePolicy"]["rules"]
    # A JobSet hears of both as failures of its Job, and tells them apart: test_multi_node.
    alone = not of_kind(manifests, "JobSet")
    assert disrupted["action"] == ("Ignore" if alone else "FailJob")
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (refused["action"], refused["onExitCodes"]["values"]) == ("FailJob", [2])
    assert "return 2" in (Path(ROOT) / "dapod" / "service.py").read_text()


def test_selectors_find_their_pods(manifests: Manifests) -> None:
    labels = [pod.labels for pod in pods(manifests)]
    for manifest in manifests:
        kind, spec = manifest["kind"], manifest.get("spec", {})
        if kind == "Service":
            selector = spec["selector"]
        elif kind in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
            selector = spec["selector"]["matchLabels"]
        else:
            continue
        matching = [one for one in labels if selector.items() <= one.items()]
        assert len(matching) == 1, f"{kind}/{manifest['metadata']['name']}"
