"""What each component adds: the graph and nothing else, metrics that exist, no trace of Valkey."""

import re
from collections.abc import Callable, Iterable

import pytest
import yaml

from tests.k8s.manifests import K8S, ROOT, Manifest, Pod, build, named, of_kind, pods

Manifests = tuple[Manifest, ...]
Side = Callable[[Manifests, Pod, Pod, int], bool]
"""`leaves` or `enters`."""
GRAPH = {
    ("rollout", "buffer", 50051),
    ("rollout", "reward", 50051),
    ("trainer", "buffer", 50051),
    ("buffer", "valkey", 6379),
}


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """A label selector, as the API server reads it (the operators that are used here)."""
    wanted = selector.get("matchLabels", {})
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in wanted.items())


def leaves(manifests: Manifests, one: Pod, other: Pod, port: int) -> bool:
    """Whether `one` may open a connection to `other`, as far as `one` is concerned."""
    return _passes(manifests, one, other, port, ("Egress", "egress", "to"))


def enters(manifests: Manifests, one: Pod, other: Pod, port: int) -> bool:
    """The same, as far as `other` is concerned."""
    return _passes(manifests, other, one, port, ("Ingress", "ingress", "from"))


def _passes(
    manifests: Manifests, pod: Pod, peer: Pod, port: int, direction: tuple[str, str, str]
) -> bool:
    kind, rules, place = direction
    policies = [
        policy["spec"]
        for policy in of_kind(manifests, "NetworkPolicy")
        if kind in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], pod.labels)
    ]
    return not policies or any(
        selects(where["podSelector"], peer.labels)
        for policy in policies
        for rule in policy.get(rules, [])
        for where in rule[place]
        if set(where) == {"podSelector"}
        and ("ports" not in rule or port in {p["port"] for p in rule["ports"]})
    )


def by_component(manifests: Manifests) -> dict[str, Pod]:
    return {pod.component: pod for pod in pods(manifests)}


def arrows(manifests: Manifests, side: Side, ports: Iterable[int]) -> set[tuple[str, str, int]]:
    """What `side` leaves open between components; the trainer's ranks among themselves aside."""
    found = by_component(manifests)
    return {
        (one, other, port)
        for one in found
        for other in found
        for port in ports
        if (one, other) != ("trainer", "trainer")
        and side(manifests, found[one], found[other], port)
    }


@pytest.mark.parametrize("side", [leaves, enters])
def test_only_the_arrows_of_the_graph_are_open_on_either_side(side: Side) -> None:
    assert arrows(build("cpu-demo", "network-policies"), side, (50051, 6379, 8080)) == GRAPH


def test_without_the_component_everything_is_open() -> None:
    manifests = build("cpu-demo")
    found = by_component(manifests)
    for side in (leaves, enters):
        assert side(manifests, found["reward"], found["valkey"], 6379)


def egress(manifests: Manifests, component: str) -> list[Manifest]:
    """All that a component's pods may reach."""
    pod = by_component(manifests)[component]
    return [
        place
        for policy in of_kind(manifests, "NetworkPolicy")
        if "Egress" in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], pod.labels)
        for rule in policy["spec"].get("egress", [])
        for place in rule["to"]
    ]


def test_verifiers_reach_nothing_at_all() -> None:
    assert egress(build("cpu-demo", "network-policies"), "reward") == []


def test_all_pods_are_denied_by_default_both_ways() -> None:
    policy = named(build("cpu-demo", "network-policies"), "NetworkPolicy", "default-deny")
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_callers_may_ask_the_clusters_dns_and_a_nodes_cache_and_nothing_else_there() -> None:
    manifests = build("cpu-demo", "network-policies")
    policy = named(manifests, "NetworkPolicy", "dns")["spec"]
    # `model` calls a package index.
    callers = {one for one, _, _ in GRAPH} | {"model"}
    assert set(policy["podSelector"]["matchExpressions"][0]["values"]) == callers
    (rule,) = policy["egress"]
    assert {(one["protocol"], one["port"]) for one in rule["ports"]} == {("UDP", 53), ("TCP", 53)}
    addresses = {place["ipBlock"]["cidr"] for place in rule["to"] if "ipBlock" in place}
    # NodeLocal DNSCache, and GKE's Cloud DNS.
    assert addresses == {"169.254.20.10/32", "169.254.169.254/32"}
    servers = [place for place in rule["to"] if "ipBlock" not in place]
    system = {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
    assert all(place["namespaceSelector"] == system for place in servers)
    labels = [place["podSelector"]["matchLabels"] for place in servers]
    assert labels == [{"k8s-app": "kube-dns"}, {"k8s-app": "node-local-dns"}]


@pytest.mark.parametrize("component", ["rollout", "reward", "buffer", "trainer"])
def test_prometheus_reads_every_service(component: str) -> None:
    manifests = build("cpu-demo", "network-policies", "monitoring")
    pod = by_component(manifests)[component]
    policy = named(manifests, "NetworkPolicy", "metrics")["spec"]
    assert selects(policy["podSelector"], pod.labels)
    ports = {p["name"]: p["containerPort"] for p in pod.containers[0]["ports"]}
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": ports["ops"]}]
    (monitor,) = of_kind(manifests, "PodMonitor")
    assert selects(monitor["spec"]["selector"], pod.labels)
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in ports


def test_an_external_redis_leaves_no_valkey_behind() -> None:
    manifests = build("cpu-demo", "network-policies", "external-redis")
    assert not [m for m in manifests if m["metadata"]["name"].startswith("valkey")]
    assert "valkey" not in by_component(manifests)


def test_the_redis_url_comes_from_a_secret_that_is_not_in_the_repository() -> None:
    manifests = build("cpu-demo", "external-redis")
    variables = by_component(manifests)["buffer"].containers[0]["env"]
    (url,) = [v for v in variables if v["name"] == "DAPOD_REDIS_URL"]
    assert url == {
        "name": "DAPOD_REDIS_URL",
        "valueFrom": {"secretKeyRef": {"name": "redis", "key": "url"}},
    }
    assert of_kind(manifests, "Secret") == []


def test_only_the_buffer_gets_out_to_an_external_redis() -> None:
    manifests = build("cpu-demo", "network-policies", "external-redis")
    outside = {"ipBlock": {"cidr": "0.0.0.0/0"}}
    assert outside in egress(manifests, "buffer")
    for component in ("rollout", "trainer", "reward"):
        assert outside not in egress(manifests, component)


def test_without_network_policies_an_external_redis_brings_none() -> None:
    assert of_kind(build("cpu-demo", "external-redis"), "NetworkPolicy") == []


def queries() -> dict[str, str]:
    """The expression behind each autoscaler, and the rule that feeds one of them."""
    (scaled,) = of_kind(build("cpu-demo", "autoscaling-keda"), "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    adapter = yaml.safe_load(
        (K8S / "components/autoscaling-hpa/prometheus-adapter.yaml").read_text()
    )
    (rule,) = adapter["rules"]["external"]
    return {"keda": trigger["metadata"]["query"], "hpa": rule["metricsQuery"]}


@pytest.mark.parametrize("autoscaler", ["keda", "hpa"])
def test_autoscalers_ask_for_metrics_that_are_exported(autoscaler: str) -> None:
    names = re.findall(r"\bdapod_(trainer|buffer)_([a-z_]+)", queries()[autoscaler])
    assert set(names) == {("trainer", "phase_seconds_total"), ("buffer", "run_finished")}
    for service, name in names:
        assert f'"{name}"' in (ROOT / "services" / service / "metrics.py").read_text()


def test_both_autoscalers_ask_the_same() -> None:
    keda = queries()["keda"].replace('namespace="dapod"', "<<.LabelMatchers>>")
    assert keda == queries()["hpa"]


def test_keda_takes_the_ratio_as_it_is_and_a_lost_metric_as_an_error() -> None:
    (scaled,) = of_kind(build("cpu-demo", "autoscaling-keda"), "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["metricType"] == "Value"
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert scaled["spec"]["fallback"]["replicas"] >= scaled["spec"]["minReplicaCount"]
    # Sums and a maximum, without `by`: one element, whatever pods there were.
    assert re.fullmatch(
        r"sum\(.+\) / clamp_min\(sum\(.+\), 0\.001\) or 0 \* max\(.+\)",
        trigger["metadata"]["query"],
    )
    assert " by " not in trigger["metadata"]["query"]


def test_the_autoscalers_agree_on_their_target_and_pace() -> None:
    (scaled,) = of_kind(build("cpu-demo", "autoscaling-keda"), "ScaledObject")
    (scaler,) = of_kind(build("cpu-demo", "autoscaling-hpa"), "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    target = metric["external"]["target"]
    assert target["type"] == "Value"
    threshold = scaled["spec"]["triggers"][0]["metadata"]["threshold"]
    assert float(target["value"].removesuffix("m")) / 1000 == float(threshold)
    keda = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert scaler["spec"]["behavior"] == keda
    assert scaler["spec"]["maxReplicas"] == scaled["spec"]["maxReplicaCount"]


@pytest.mark.parametrize("autoscaler", ["autoscaling-keda", "autoscaling-hpa"])
def test_an_autoscaled_deployment_states_no_number(autoscaler: str) -> None:
    manifests = build("cpu-demo", autoscaler)
    assert "replicas" not in named(manifests, "Deployment", "rollout")["spec"]
    (scaler,) = [m for m in manifests if m["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")]
    assert scaler["spec"]["scaleTargetRef"]["name"] == "rollout"


def test_spot_nodes_are_for_rollouts_only() -> None:
    manifests = build("cpu-demo", "spot-rollouts")
    for component, pod in by_component(manifests).items():
        assert bool(pod.spec.get("tolerations")) == (component == "rollout")


def test_spot_nodes_are_preferred_beside_the_one_node_rule() -> None:
    rollout = by_component(build("cpu-demo", "spot-rollouts"))["rollout"]
    assert set(rollout.spec["affinity"]) == {"podAffinity", "nodeAffinity"}
    assert rollout.spec["terminationGracePeriodSeconds"] < 30


def test_spot_nodes_with_gpus_are_tolerated_too() -> None:
    rollout = by_component(build("single-node-gpu", "spot-rollouts"))["rollout"]
    keys = {toleration["key"] for toleration in rollout.spec["tolerations"]}
    assert {"nvidia.com/gpu", "spot"} <= keys
