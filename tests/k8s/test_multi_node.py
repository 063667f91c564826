"""The trainer over several nodes: one JobSet whose pods find each other and end together."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from dapod import config
from dapod.config import RunConfig
from dapod.environment import Environment
from services.trainer.launch import JOIN_SECONDS
from services.trainer.node import Node
from tests.k8s.manifests import (
    K8S,
    KUBECTL,
    ROOT,
    Manifest,
    Pod,
    build,
    environment,
    jobs,
    named,
    of_kind,
    pods,
)

OVERLAY = K8S / "overlays" / "multi-node"
INDEX = "batch.kubernetes.io/job-completion-index"


@pytest.fixture(scope="module")
def manifests() -> tuple[Manifest, ...]:
    return build("multi-node")


@pytest.fixture(scope="module")
def jobset(manifests: tuple[Manifest, ...]) -> Manifest:
    (found,) = of_kind(manifests, "JobSet")
    return found


@pytest.fixture(scope="module")
def trainer(manifests: tuple[Manifest, ...]) -> Pod:
    (found,) = [pod for pod in pods(manifests) if pod.component == "trainer"]
    return found


@pytest.fixture(scope="module")
def run() -> RunConfig:
    return config.load(OVERLAY / "run.toml")


def nodes(manifests: tuple[Manifest, ...], trainer: Pod, run: RunConfig) -> list[Node]:
    """What each pod reads from its environment, with the index that the Job gives it."""
    (job,) = jobs(manifests)
    given = environment(manifests, trainer.containers[0])
    return [
        Node.of(
            Environment(variables=given | {"DAPOD_TRAINER_NODE": str(index)}), run.trainer.ranks
        )
        for index in range(job["spec"]["completions"])
    ]


def test_all_ranks_are_on_the_pods_of_the_job_and_all_pods_run_at_once(
    manifests: tuple[Manifest, ...], trainer: Pod, run: RunConfig
) -> None:
    (job,) = jobs(manifests)
    found = nodes(manifests, trainer, run)
    assert job["spec"]["parallelism"] == job["spec"]["completions"] == found[0].count > 1
    assert sum(node.ranks for node in found) == run.trainer.ranks
    assert [node.index for node in found] == list(range(len(found)))


def test_each_pod_learns_its_index_from_the_job(trainer: Pod) -> None:
    (index,) = [v for v in trainer.containers[0]["env"] if v["name"] == "DAPOD_TRAINER_NODE"]
    path = f"metadata.annotations['{INDEX}']"
    assert index["valueFrom"] == {"fieldRef": {"fieldPath": path}}


def test_the_pods_meet_at_the_name_of_the_first_one(
    manifests: tuple[Manifest, ...], jobset: Manifest, trainer: Pod, run: RunConfig
) -> None:
    """<JobSet>-<replicated job>-<its number>-<pod>.<subdomain>, of a headless Service."""
    (job,) = jobset["spec"]["replicatedJobs"]
    host, port = nodes(manifests, trainer, run)[0].master
    subdomain = jobset["spec"]["network"]["subdomain"]
    assert host == f"{jobset['metadata']['name']}-{job['name']}-0-0.{subdomain}"
    assert port not in {p["containerPort"] for p in trainer.containers[0]["ports"]}
    service = named(manifests, "Service", subdomain)["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    assert service["selector"].items() <= trainer.labels.items()
    assert trainer.spec["subdomain"] == subdomain
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True


def failure(job: Manifest, rule: int) -> str:
    """What the Job controller says of a pod that a rule of the policy matched (its
    pod_failure_policy.go)."""
    if "onExitCodes" in job["spec"]["podFailurePolicy"]["rules"][rule]:
        why = "Container trainer for pod dapod/trainer-node-0-1-x failed with exit code 2"
    else:
        why = "Pod dapod/trainer-node-0-1-x has condition DisruptionTarget"
    return f"{why} matching FailJob rule at index {rule}"


def test_the_group_starts_again_after_a_disruption_without_counting_it_and_never_after_a_refusal(
    manifests: tuple[Manifest, ...], jobset: Manifest
) -> None:
    (job,) = jobs(manifests)
    rules = jobset["spec"]["failurePolicy"]["rules"]
    actions = []
    for index in (0, 1):
        matching = [
            rule["action"]
            for rule in rules
            if rule["onJobFailureReasons"] == ["PodFailurePolicy"]
            and any(
                re.search(pattern, failure(job, index))
                for pattern in rule["onJobFailureMessagePatterns"]
            )
        ]
        assert len(matching) == 1
        actions += matching
    assert actions == ["RestartJobSetAndIgnoreMaxRestarts", "FailJobSet"]
    disrupted, refused = job["spec"]["podFailurePolicy"]["rules"]
    assert "onPodConditions" in disrupted and "onExitCodes" in refused


def test_any_pod_that_fails_ends_the_group_and_the_next_waits_for_the_last_to_be_gone(
    manifests: tuple[Manifest, ...], jobset: Manifest
) -> None:
    (job,) = jobs(manifests)
    assert job["spec"]["backoffLimit"] == 0
    policy = jobset["spec"]["failurePolicy"]
    assert policy["restartStrategy"] == "BlockingRecreate"
    assert policy["maxRestarts"] > 0


def test_checkpoints_are_on_a_volume_of_all_nodes(manifests: tuple[Manifest, ...]) -> None:
    for claim in of_kind(manifests, "PersistentVolumeClaim"):
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"], claim["metadata"]["name"]


def test_a_pod_that_waits_for_the_others_is_not_killed_for_it(trainer: Pod) -> None:
    probe = trainer.containers[0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= JOIN_SECONDS + 300


def test_the_trainer_is_the_bases_with_what_several_nodes_need(trainer: Pod) -> None:
    (base,) = [pod for pod in pods(build("base")) if pod.component == "trainer"]
    ours, theirs = trainer.containers[0], base.containers[0]
    assert trainer.labels == base.labels
    assert trainer.spec["securityContext"] == base.spec["securityContext"]
    assert ours["livenessProbe"] == theirs["livenessProbe"]
    assert ours["volumeMounts"] == theirs["volumeMounts"]
    assert {v["name"] for v in theirs["env"]} < {v["name"] for v in ours["env"]}


def test_the_job_of_the_base_is_not_sent(manifests: tuple[Manifest, ...]) -> None:
    assert of_kind(manifests, "Job") == []


def test_it_learns_what_the_config_of_the_paper_learns(run: RunConfig) -> None:
    """But for where the rows lie."""
    theirs = config.load(
        ROOT / "configs" / "dapo_qwen2.5_32b.toml", ["data.path=dapo-math-17k.parquet"]
    )
    assert run.digest() == theirs.digest()


def test_a_folder_of_ones_own_changes_images_and_config_of_the_job_set_too(tmp_path: Path) -> None:
    own = tmp_path.resolve()
    above = Path(*[".."] * (len(own.parts) - 1), *OVERLAY.resolve().parts[1:])
    (own / "run.toml").write_text((OVERLAY / "run.toml").read_text().replace("400", "401"))
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "mine",
        "resources": [str(above)],
        "images": [{"name": "dapod-trainer", "newName": "registry.example.com/trainer"}],
        "configMapGenerator": [{"name": "run", "behavior": "merge", "files": ["run.toml"]}],
    }
    (own / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    assert KUBECTL is not None
    done = subprocess.run([KUBECTL, "kustomize", own], capture_output=True, text=True, check=True)
    manifests = tuple(yaml.safe_load_all(done.stdout))
    (trainer,) = [pod for pod in pods(manifests) if pod.component == "trainer"]
    images = {container["image"] for container in trainer.all_containers}
    assert images == {"registry.example.com/trainer:0.1.0-cuda"}
    (volume,) = [v for v in trainer.spec["volumes"] if v["name"] == "run"]
    (made,) = [
        m
        for m in of_kind(manifests, "ConfigMap")
        if m["metadata"]["name"] == volume["configMap"]["name"]
    ]
    assert "steps = 401" in made["data"]["run.toml"]
    (jobset,) = of_kind(manifests, "JobSet")
    assert jobset["metadata"]["namespace"] == "mine"
