"""docs/kubernetes.md names folders that exist and combinations that are tested."""

import re

import kubernetes_validate
import pytest
import yaml

from tests.k8s.manifests import (
    COMBINATIONS,
    COMPONENTS,
    OVERLAYS,
    ROOT,
    build,
    build_own,
    named,
    of_kind,
    pods,
)

PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]


def test_every_folder_is_described() -> None:
    described = set(re.findall(r"^\| `((?:overlays|components)/[a-z-]+)`", PAGE, re.M))
    assert described == {
        *(f"overlays/{name}" for name in OVERLAYS),
        *(f"components/{name}" for name in COMPONENTS),
    }


def test_every_path_on_the_page_exists() -> None:
    for path in re.findall(r"\bk8s/[\w./-]*\w", PAGE):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if "components" in block], ids=lambda b: str(len(b))
)
def test_every_combination_on_the_page_is_tested(block: dict[str, list[str]]) -> None:
    names = tuple(path.rpartition("/")[2] for path in block["components"])
    assert names in {combination[1:] for combination in COMBINATIONS}


def test_the_page_replaces_a_config_map_that_the_base_has() -> None:
    (block,) = [b for b in BLOCKS if "configMapGenerator" in b]
    for generator in block["configMapGenerator"]:
        made = named(build("base"), "ConfigMap", generator["name"])
        assert generator["behavior"] == "merge"
        assert set(generator["files"]) <= set(made["data"])


def test_the_patch_on_the_page_names_a_node_for_all_pods_that_must_share_one() -> None:
    (block,) = [b for b in BLOCKS if "patches" in b]
    for pod in pods(build_own("cpu-demo", **block)):
        together = "podAffinity" in pod.spec.get("affinity", {})
        chosen = {"kubernetes.io/hostname": "NODE"} if together else None
        assert pod.spec.get("nodeSelector") == chosen, pod.owner


def test_the_page_empties_the_volumes_that_keep_those_pods_on_a_node() -> None:
    (command,) = re.findall(r"kubectl -n dapod delete pvc (.+)", PAGE)
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in pods(build("cpu-demo"))
        if "affinity" in pod.spec
        for volume in pod.spec["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert set(command.split()) == claims


def test_no_second_trainer_is_started_beside_one_that_still_ends() -> None:
    """Without it kubectl returns while the pod of the deleted Job has its grace period."""
    texts = [file.read_text() for file in (ROOT / "docs").rglob("*.md")]
    deletes = [
        command
        for command in re.findall(r"kubectl [^&\n`]*\bdelete [^&\n`#]*", "\n".join(texts))
        if re.search(r"\b(job|jobset)\b(?!/model)", command)
    ]
    assert len(deletes) >= 6
    for command in deletes:
        assert "--cascade=foreground" in command and "--wait=false" not in command, command


def test_nobody_is_told_to_look_for_an_earlier_container_in_a_pod_that_has_none() -> None:
    """A trainer that ends is another pod: its containers are never started again."""
    (trainer,) = [pod for pod in pods(build("base")) if pod.component == "trainer"]
    assert trainer.spec["restartPolicy"] == "Never"
    page = (ROOT / "docs" / "operations.md").read_text()
    restarts = page.partition("### TrainerRestarts\n")[2].partition("\n### ")[0]
    assert "--previous" not in restarts
    (selector,) = re.findall(r"get pods -l (\S+)=(\S+)", restarts)
    assert trainer.labels[selector[0]] == selector[1]


def test_removing_one_run_leaves_what_other_runs_use() -> None:
    """A delete of the whole overlay would take the cluster's own objects, too."""
    of_the_cluster = [m for m in build("base") if "namespace" not in m["metadata"]]
    assert {m["kind"] for m in of_the_cluster} == {"Namespace", "PriorityClass"}
    assert not re.search(r"kubectl [^&\n]*delete [^&\n]*(-k|--kustomize)\b", PAGE)
    removal = PAGE.partition("## Remove\n")[2].partition("\n## ")[0]
    assert "    kubectl delete namespace dapod\n" in removal
    (last,) = re.findall(r"kubectl delete priorityclass (.+)", removal)
    shared = of_kind(build("base"), "PriorityClass")
    assert set(last.split()) == {m["metadata"]["name"] for m in shared}


def test_every_priority_class_in_a_command_exists() -> None:
    classes = {c["metadata"]["name"] for c in of_kind(build("base"), "PriorityClass")}
    commands = re.findall(r"kubectl delete priorityclass((?: [a-z-]+)+)", PAGE)
    assert commands and {name for names in commands for name in names.split()} <= classes


def test_the_pod_on_the_page_is_let_in_and_finds_the_volumes_node() -> None:
    (pod,) = [b for b in BLOCKS if b.get("kind") == "Pod"]
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
    model = named(build("cpu-demo"), "Job", "model")["spec"]["template"]
    assert pod["spec"]["affinity"] == model["spec"]["affinity"]
    label = "app.kubernetes.io/component"
    assert pod["metadata"]["labels"][label] == model["metadata"]["labels"][label]
    # What Pod Security asks for, as our own pods have it.
    assert pod["spec"]["securityContext"].items() <= model["spec"]["securityContext"].items()
    (container,), (ours,) = pod["spec"]["containers"], model["spec"]["containers"]
    assert container["securityContext"] == ours["securityContext"]
    assert container["volumeMounts"][0] in ours["volumeMounts"]
    assert pod["spec"]["volumes"][0] in model["spec"]["volumes"]
