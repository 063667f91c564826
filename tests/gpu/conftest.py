"""What the tests on a GPU need: the GPU itself, and the quickstart's model."""

from __future__ import annotations

from pathlib import Path

import pytest

MODEL = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    reason = _missing() if here else ""
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _missing() -> str:
    """Why these tests cannot run here; empty when they can."""
    import torch

    if not torch.cuda.is_available():
        return f"needs a GPU: torch {torch.__version__} sees no CUDA device"
    if not (MODEL / "model.safetensors").exists():
        return f"{MODEL} is not there: make model"
    return ""


@pytest.fixture(scope="session")
def model() -> Path:
    """The quickstart's real model."""
    return MODEL
