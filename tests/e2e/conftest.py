"""What every end-to-end test needs."""

from pathlib import Path

import pytest

from tests.e2e.live_run import MODEL


@pytest.fixture(scope="session")
def model() -> Path:
    """The quickstart's real model."""
    if not (MODEL / "model.safetensors").exists():
        pytest.fail(f"{MODEL} is not there: make model")
    return MODEL
