"""What every end-to-end test needs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.finished_run import Finished, finish_a_run
from tests.e2e.live_run import MODEL


@pytest.fixture(scope="session")
def model() -> Path:
    """The quickstart's real model."""
    if not (MODEL / "model.safetensors").exists():
        pytest.fail(f"{MODEL} is not there: make model")
    return MODEL


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Finished]:
    """One run for the tests of several files: two minutes."""
    with finish_a_run(tmp_path_factory.mktemp("finished")) as finished:
        yield finished
