"""Fixtures of the trainer's tests: one process group and one tiny model for all of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The first call of a torch operation is slow, and so is a machine that does other things.
settings.register_profile("trainer", deadline=None)
settings.load_profile("trainer")

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("LOCAL_RANK", "0")


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from tests.trainer.harness import one_rank

    with one_rank(tmp_path_factory.mktemp("group")) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.trainer.harness import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny"))
