"""The component `mtls`: whose certificate says what, who has which, and how probes get round it."""

from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dapod import rpc
from dapod.environment import Environment
from dapod.tls import Tls
from tests.dapod.certificates import CALL, SERVE, Authority
from tests.k8s.manifests import (
    COMBINATIONS,
    K8S,
    Combination,
    Manifest,
    Pod,
    build,
    environment,
    named,
    of_kind,
    pods,
)
from tests.k8s.test_components import GRAPH, Side, arrows, by_component, enters, leaves

SERVICES = {"rollout", "reward", "buffer", "trainer"}
Manifests = tuple[Manifest, ...]


@pytest.fixture(params=[c for c in COMBINATIONS if "mtls" in c], ids="+".join)
def combination(request: pytest.FixtureRequest) -> Combination:
    parameter: Combination = request.param
    return parameter


def ours(manifests: Manifests) -> list[Pod]:
    return [pod for pod in pods(manifests) if pod.component in SERVICES]


def told(manifests: Manifests, pod: Pod) -> Environment:
    return Environment(variables=environment(manifests, pod.containers[0]))


def certificates(manifests: Manifests) -> dict[str, dict[str, Any]]:
    """What is asked of cert-manager, by the Secret it goes into."""
    asked = [certificate["spec"] for certificate in of_kind(manifests, "Certificate")]
    assert len({spec["secretName"] for spec in asked}) == len(asked)
    return {spec["secretName"]: spec for spec in asked}


def own(manifests: Manifests, pod: Pod) -> dict[str, Any]:
    """The certificate of a pod."""
    secrets = [v["secret"]["secretName"] for v in pod.spec["volumes"] if v["name"] == "tls"]
    return certificates(manifests)[secrets[0]]


def test_every_service_finds_its_own_certificate_where_it_is_told_to_look(
    manifests: Manifests,
) -> None:
    assert {pod.component for pod in ours(manifests)} == SERVICES
    for pod in ours(manifests):
        (mount,) = [m for m in pod.containers[0]["volumeMounts"] if m["name"] == "tls"]
        # The folder, not files of it by subPath: those would stay what they were at the start.
        assert mount == {"name": "tls", "mountPath": "/dapod/tls", "readOnly": True}
        assert told(manifests, pod).tls_dir == Path("/dapod/tls")
        assert own(manifests, pod)["secretName"] == f"{pod.component}-tls"


def test_the_key_is_readable_for_the_service_and_for_nobody_else(manifests: Manifests) -> None:
    for pod in ours(manifests):
        (volume,) = [v for v in pod.spec["volumes"] if v["name"] == "tls"]
        assert volume["secret"]["defaultMode"] == 0o440
        assert "optional" not in volume["secret"], "it would start without"
        assert pod.spec["securityContext"]["fsGroup"] == 10001, pod.owner
        for container in pod.spec.get("initContainers", []):
            assert "tls" not in {mount["name"] for mount in container["volumeMounts"]}


def test_a_certificate_is_for_the_name_that_callers_use(manifests: Manifests) -> None:
    called = {
        value.removeprefix("dns:///").partition(":")[0]
        for pod in ours(manifests)
        for name, value in environment(manifests, pod.containers[0]).items()
        if name.endswith("_ADDRESS")
    }
    assert called == {"buffer", "reward"}
    for name in called:
        assert own(manifests, by_component(manifests)[name])["dnsNames"] == [name]


def test_who_only_answers_cannot_call_and_who_only_calls_cannot_answer(
    manifests: Manifests,
) -> None:
    callers = {one for one, _, port in GRAPH if port == 50051}
    called = {other for _, other, port in GRAPH if port == 50051}
    for pod in ours(manifests):
        usages = set(own(manifests, pod)["usages"])
        assert ("client auth" in usages) == (pod.component in callers), pod.owner
        answers = pod.component in called or pod.component == "rollout"  # its RPCs for debugging
        assert ("server auth" in usages) == answers, pod.owner
        assert "digital signature" in usages


def test_all_are_signed_by_one_authority_whose_key_no_pod_has(manifests: Manifests) -> None:
    issuers = {
        issuer["metadata"]["name"]: issuer["spec"] for issuer in of_kind(manifests, "Issuer")
    }
    authorities = {name for name, spec in certificates(manifests).items() if spec.get("isCA")}
    for name, spec in certificates(manifests).items():
        issuer = issuers[spec["issuerRef"]["name"]]
        if name in authorities:
            assert issuer == {"selfSigned": {}}
        else:
            assert {issuer["ca"]["secretName"]} == authorities
    for pod in pods(manifests):
        secrets = {v["secret"]["secretName"] for v in pod.spec["volumes"] if "secret" in v}
        assert not secrets & authorities, pod.owner


def test_certificates_are_renewed_long_before_they_end_and_outlived_by_their_authority(
    manifests: Manifests,
) -> None:
    def hours(text: str) -> int:
        return int(text.removesuffix("h"))

    asked = certificates(manifests)
    authority = asked.pop("authority-tls")
    # Another key would make strangers of all pods that have not been given it yet.
    assert authority["privateKey"]["rotationPolicy"] == "Never"
    for spec in asked.values():
        # A week of a cert-manager that is broken is noticed by then.
        assert 168 <= hours(spec["renewBefore"]) < hours(spec["duration"]) / 2
        assert hours(spec["duration"]) < hours(authority["duration"]) / 3
        assert spec["privateKey"]["rotationPolicy"] == "Always"


def test_a_trainer_that_is_a_job_set_gets_what_one_that_is_a_job_gets() -> None:
    folder = K8S / "components" / "mtls"
    pod = yaml.safe_load((folder / "trainer.yaml").read_text())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    wanted = [container["env"], container["volumeMounts"], pod["volumes"]]
    operations = yaml.safe_load((folder / "trainer-jobset.yaml").read_text())
    assert [[operation["value"]] for operation in operations] == wanted


def answered(server: Tls, name: str, caller: Tls) -> bool:
    """Whether `caller` gets an answer from `server`, which it calls `name`."""
    listening = rpc.RpcServer(threads=1, tls=server)
    port = listening.start("127.0.0.1", 0)
    options = [("grpc.ssl_target_name_override", name)]
    credentials = caller.identity.for_channels()
    try:
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        return True
    except grpc.RpcError as error:
        assert rpc.status(error) is grpc.StatusCode.UNAVAILABLE
        return False
    finally:
        listening.stop(0)


def test_such_certificates_let_callers_in_and_nobody_pass_for_another(tmp_path: Path) -> None:
    """Real ones, as they are asked of cert-manager, in our own servers and channels."""
    manifests, authority = build("cpu-demo", "mtls"), Authority()
    known = {"server auth": SERVE, "client auth": CALL}
    has = {}
    for component in SERVICES:
        spec = own(manifests, by_component(manifests)[component])
        authority.issue(
            tmp_path / component,
            names=spec["dnsNames"],
            addresses=spec.get("ipAddresses", []),
            usages=[known[usage] for usage in spec["usages"] if usage in known],
        )
        has[component] = Tls(tmp_path / component)
    for name in ("buffer", "reward"):
        let_in = {caller for caller in SERVICES if answered(has[name], name, has[caller])}
        assert let_in == {"rollout", "trainer"}
        for impostor in SERVICES - {name}:
            assert not answered(has[impostor], name, has["rollout"]), f"{impostor} as {name}"


def test_grpc_probes_ask_the_port_that_wants_no_certificate(manifests: Manifests) -> None:
    probed = {
        pod.component: pod.containers[0]["startupProbe"]["grpc"]
        for pod in ours(manifests)
        if "grpc" in pod.containers[0]["startupProbe"]
    }
    assert probed == {"buffer": {"port": 50052}, "reward": {"port": 50052}}
    for component in probed:
        assert told(manifests, by_component(manifests)[component]).health_port == 50052


def test_callers_cannot_reach_it_through_a_service(manifests: Manifests) -> None:
    for service in of_kind(manifests, "Service"):
        assert 50052 not in {port["port"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize("side", [leaves, enters])
def test_with_network_policies_no_arrow_is_added_and_no_pod_reaches_the_health_port(
    side: Side,
) -> None:
    manifests = build("cpu-demo", "network-policies", "mtls")
    assert arrows(manifests, side, (50051, 50052, 6379)) == GRAPH


def test_without_the_component_nobody_is_told_of_a_certificate() -> None:
    manifests = build("cpu-demo")
    for pod in ours(manifests):
        assert told(manifests, pod).tls_dir is None
        assert told(manifests, pod).health_port is None
    assert named(manifests, "Deployment", "buffer")["spec"]["template"]["spec"]["containers"][0][
        "startupProbe"
    ]["grpc"] == {"port": 50051}
