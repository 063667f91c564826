"""The images and docker-compose.yml for real: `make test-containers`, not `make test`."""

import pytest

from tests.podman import podman


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = podman.missing()
    for item in items:
        if "tests/podman" in str(item.path) and reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def images() -> None:
    """All of them are built."""
    podman.build_all()
