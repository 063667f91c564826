"""The API server's view: strict schemas of the newest versions, typed custom resources."""

import copy
import functools
import json
from typing import Any

import kubernetes_validate
import pytest
from cloudcoil.models.cert_manager.v1 import Certificate, Issuer
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
from kubernetes_validate.utils import all_versions
from pydantic import BaseModel, RootModel

from tests.k8s.manifests import COMPONENTS, K8S, OVERLAYS, Manifest, build, jobs, of_kind

NEWEST = list(dict.fromkeys(all_versions()))[-3:]
TYPED: dict[tuple[str, str], type[BaseModel]] = {
    ("cert-manager.io/v1", "Certificate"): Certificate,
    ("cert-manager.io/v1", "Issuer"): Issuer,
    ("keda.sh/v1alpha1", "ScaledObject"): ScaledObject,
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): JobsetV1alpha2JobSet,
    ("monitoring.coreos.com/v1", "PodMonitor"): PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PrometheusRule,
}


def is_custom(manifest: Manifest) -> bool:
    return (manifest["apiVersion"], manifest["kind"]) in TYPED


@functools.cache
def refusal(text: str, version: str) -> str:
    """Why the API server would refuse an object; '' when it would not. Once for each object."""
    try:
        kubernetes_validate.validate(json.loads(text), version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return error.message
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return ""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", NEWEST)
def test_every_object_passes_the_strict_schema(
    manifests: tuple[Manifest, ...], version: str
) -> None:
    for manifest in (*manifests, *jobs(manifests)):
        if not is_custom(manifest):
            name = f"{manifest['kind']}/{manifest['metadata']['name']}"
            assert not (why := refusal(json.dumps(manifest), version)), f"{name}: {why}"


def test_the_three_newest_versions_are_three() -> None:
    assert len(NEWEST) == 3
    assert all(tuple(map(int, version.split(".")[:2])) >= (1, 33) for version in NEWEST)


def test_the_strict_schema_would_see_a_misspelt_field() -> None:
    job = json.loads(json.dumps(of_kind(build("base"), "Job")[0]))
    job["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 1
    assert "terminationGracePeriodSecond" in refusal(json.dumps(job), NEWEST[-1])


def unknown_fields(given: Any, known: Any, where: str = "") -> list[str]:
    """What was given and a typed model did not keep: these models let unknown fields pass."""
    if isinstance(given, dict) and isinstance(known, dict):
        return [
            field
            for key, value in given.items()
            for field in (
                unknown_fields(value, known[key], f"{where}.{key}")
                if key in known
                else [f"{where}.{key}"]
            )
        ]
    if isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        return [
            field
            for index, (one, other) in enumerate(zip(given, known, strict=True))
            for field in unknown_fields(one, other, f"{where}[{index}]")
        ]
    return [] if given == known else [f"{where}: {given!r} became {known!r}"]


def kept(model: type[BaseModel], manifest: Manifest) -> Any:
    """What the model knows of the object: fields that it has, and no others."""
    parsed = model.model_validate(manifest)
    return _declared(parsed)


def _declared(value: Any) -> Any:
    if isinstance(value, RootModel):
        return _declared(value.root)
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            (field.alias or name): _declared(getattr(value, name))
            for name, field in fields.items()
            if name in value.model_fields_set
        }
    if isinstance(value, list):
        return [_declared(one) for one in value]
    if isinstance(value, dict):
        return {key: _declared(one) for key, one in value.items()}
    return value


def test_custom_resources_have_no_field_that_their_model_does_not_know(
    manifests: tuple[Manifest, ...],
) -> None:
    for manifest in map(without_jobs, filter(is_custom, manifests)):
        model = TYPED[manifest["apiVersion"], manifest["kind"]]
        assert unknown_fields(manifest, kept(model, manifest)) == []


def without_jobs(manifest: Manifest) -> Manifest:
    """A JobSet's own fields: its Jobs pass the strict schema, and their model takes no quantity."""
    if manifest["kind"] != "JobSet":
        return manifest
    own: Manifest = copy.deepcopy(manifest)
    for job in own["spec"]["replicatedJobs"]:
        job["template"] = {"spec": {"template": {}}}
    return own


def test_a_misspelt_field_of_a_job_set_would_be_seen() -> None:
    (jobset,) = of_kind(build("multi-node"), "JobSet")
    wrong = without_jobs(jobset)
    wrong["spec"]["failurePolicy"]["rules"][0]["onJobFailureMessagePattern"] = []
    wrong["spec"]["replicatedJobs"][0]["replica"] = 1
    assert unknown_fields(wrong, kept(JobsetV1alpha2JobSet, wrong)) == [
        ".spec.failurePolicy.rules[0].onJobFailureMessagePattern",
        ".spec.replicatedJobs[0].replica",
    ]


def test_the_comparison_would_see_a_misspelt_field() -> None:
    (scaled,) = of_kind(build("cpu-demo", "autoscaling-keda"), "ScaledObject")
    wrong = json.loads(json.dumps(scaled))
    wrong["spec"]["triggers"][0]["metricsType"] = "Value"
    wrong["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behaviour"] = {}
    assert unknown_fields(wrong, kept(ScaledObject, wrong)) == [
        ".spec.advanced.horizontalPodAutoscalerConfig.behaviour",
        ".spec.triggers[0].metricsType",
    ]


def test_every_folder_is_in_a_combination() -> None:
    assert sorted(p.name for p in (K8S / "overlays").iterdir()) == sorted(OVERLAYS)
    assert sorted(p.name for p in (K8S / "components").iterdir()) == sorted(COMPONENTS)


@pytest.mark.parametrize("overlay", ["base", "cpu-demo"])
def test_the_demo_needs_no_custom_resource(overlay: str) -> None:
    assert not list(filter(is_custom, build(overlay)))
    groups = {m["apiVersion"].partition("/")[0] for m in build(overlay)}
    assert groups <= {"v1", "apps", "batch", "policy", "scheduling.k8s.io"}


def test_no_two_objects_have_the_same_name(manifests: tuple[Manifest, ...]) -> None:
    names = [(m["apiVersion"], m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(names) == len(set(names))


def test_everything_is_in_the_one_namespace(manifests: tuple[Manifest, ...]) -> None:
    for manifest in manifests:
        if manifest["kind"] not in ("Namespace", "PriorityClass"):
            assert manifest["metadata"]["namespace"] == "dapod", manifest["metadata"]["name"]
