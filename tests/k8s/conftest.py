"""Tests of k8s/: what kustomize builds, without a cluster. Skipped where there is no kubectl."""

import pytest

from tests.k8s.manifests import COMBINATIONS, KUBECTL, Combination, Manifest, build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if KUBECTL is None:
        reason = "kubectl is not on PATH; it builds what is tested here"
        for item in items:
            if "tests/k8s" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(params=COMBINATIONS, ids="+".join)
def combination(request: pytest.FixtureRequest) -> Combination:
    parameter: Combination = request.param
    return parameter


@pytest.fixture
def manifests(combination: Combination) -> tuple[Manifest, ...]:
    return build(*combination)
