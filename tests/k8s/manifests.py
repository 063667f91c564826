"""What kustomize makes of an overlay and components, read as a person would: pods, containers, env.

`build("cpu-demo", "network-policies")` is what `kubectl apply -k` of docs/kubernetes.md would send.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
KUBECTL = shutil.which("kubectl")
NAMESPACE = "dapod"

OVERLAYS = ("cpu-demo", "multi-node", "single-node-gpu")
COMPONENTS = (
    "autoscaling-hpa",
    "autoscaling-keda",
    "external-redis",
    "monitoring",
    "mtls",
    "network-policies",
    "spot-rollouts",
)
TOGETHER = (
    ("network-policies", "monitoring"),
    ("network-policies", "external-redis"),
    ("network-policies", "mtls"),
    ("monitoring", "autoscaling-keda", "spot-rollouts"),
    (
        "network-policies",
        "monitoring",
        "autoscaling-hpa",
        "external-redis",
        "spot-rollouts",
        "mtls",
    ),
    (
        "network-policies",
        "monitoring",
        "autoscaling-keda",
        "external-redis",
        "spot-rollouts",
        "mtls",
    ),
)

Combination = tuple[str, ...]
"""An overlay (or `base`) and the components put upon it."""

COMBINATIONS: tuple[Combination, ...] = (
    ("base",),
    *((overlay,) for overlay in OVERLAYS),
    *((overlay, component) for overlay in OVERLAYS for component in COMPONENTS),
    *((overlay, *components) for overlay in OVERLAYS for components in TOGETHER),
)

Manifest = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Pod:
    """The template of a workload."""

    owner: str
    """Kind and name, for messages."""
    kind: str
    component: str
    labels: dict[str, str]
    spec: Manifest

    @property
    def containers(self) -> list[Manifest]:
        """Those that run, without init containers."""
        return list(self.spec["containers"])

    @property
    def all_containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.containers]


@functools.cache
def build(overlay: str, *components: str) -> tuple[Manifest, ...]:
    """Every object of the combination, in kustomize's order."""
    if not components:
        return _built(_folder(overlay))
    return build_own(overlay, *components)


def build_own(overlay: str, *components: str, **changes: Any) -> tuple[Manifest, ...]:
    """A folder of one's own that names ours, as the docs advise, and changes something of them."""
    with tempfile.TemporaryDirectory() as directory:
        own = Path(directory).resolve()
        (own / "kustomization.yaml").write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kustomize.config.k8s.io/v1beta1",
                    "kind": "Kustomization",
                    "resources": [_relative(_folder(overlay), own)],
                    "components": [_relative(K8S / "components" / c, own) for c in components],
                    **changes,
                }
            )
        )
        return _built(own)


def _folder(overlay: str) -> Path:
    return K8S / "base" if overlay == "base" else K8S / "overlays" / overlay


def _relative(folder: Path, start: Path) -> str:
    return str(Path(*[".."] * (len(start.parts) - 1), *folder.resolve().parts[1:]))


def _built(folder: Path) -> tuple[Manifest, ...]:
    assert KUBECTL is not None
    done = subprocess.run(
        [KUBECTL, "kustomize", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"kustomize warns: {done.stderr}"
    return tuple(yaml.safe_load_all(done.stdout))


def named(manifests: tuple[Manifest, ...], kind: str, name: str) -> Manifest:
    """The one object of that kind and name; a generated name may carry its hash."""
    found = [
        m
        for m in manifests
        if m["kind"] == kind
        and (m["metadata"]["name"] == name or m["metadata"]["name"].startswith(f"{name}-"))
    ]
    assert len(found) == 1, f"{kind} {name}: {[m['metadata']['name'] for m in found]}"
    return found[0]


def of_kind(manifests: tuple[Manifest, ...], kind: str) -> list[Manifest]:
    return [m for m in manifests if m["kind"] == kind]


def jobs(manifests: tuple[Manifest, ...]) -> list[Manifest]:
    """All Jobs, those that a JobSet makes as it makes them."""
    made = [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": f"{jobset['metadata']['name']}-{job['name']}-{number}"}
            | job["template"]["metadata"],
            "spec": job["template"]["spec"],
        }
        for jobset in of_kind(manifests, "JobSet")
        for job in jobset["spec"]["replicatedJobs"]
        for number in range(job["replicas"])
    ]
    return [*of_kind(manifests, "Job"), *made]


def pods(manifests: tuple[Manifest, ...]) -> Iterator[Pod]:
    """The pod template of every workload, those inside a JobSet too."""
    workloads = [m for m in manifests if m["kind"] in ("Deployment", "StatefulSet")]
    for manifest in (*workloads, *jobs(manifests)):
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        yield _pod(f"{kind}/{name}", kind, manifest["spec"]["template"])


def _pod(owner: str, kind: str, template: Manifest) -> Pod:
    labels = template["metadata"]["labels"]
    return Pod(
        owner=owner,
        kind=kind,
        component=labels["app.kubernetes.io/component"],
        labels=labels,
        spec=template["spec"],
    )


def environment(manifests: tuple[Manifest, ...], container: Manifest) -> dict[str, str]:
    """The variables a container gets; one from a Secret reads as ''."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        name = source["configMapRef"]["name"]
        variables.update(named(manifests, "ConfigMap", name)["data"])
    for entry in container.get("env", []):
        variables[entry["name"]] = entry.get("value", "")
    return variables


def mebibytes(quantity: str) -> float:
    """A memory quantity as Kubernetes writes it."""
    units = {"Ki": 1 / 1024, "Mi": 1, "Gi": 1024, "Ti": 1024**2}
    return float(quantity[:-2]) * units[quantity[-2:]]
