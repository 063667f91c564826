"""A version is loaded only when its files and its tensors are exactly right."""

from __future__ import annotations

from pathlib import Path

import pytest

from dapod.policy_store import PolicyCorrupt, PolicyMissing, PolicyStore
from services.rollout.policies import PolicyReader
from tests.rollout.doubles import SHAPES, V0, publish, write_model


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return PolicyStore(tmp_path / "policies")


def reader(store: PolicyStore, tmp_path: Path, *, tied: bool = True) -> PolicyReader:
    write_model(tmp_path / "model", SHAPES, tied=tied)
    return PolicyReader(store, tmp_path / "model")


async def test_a_version_with_the_models_tensors_is_verified(
    store: PolicyStore, tmp_path: Path
) -> None:
    publish(store, V0, SHAPES)
    verified = await reader(store, tmp_path).verify(V0)
    assert (verified.policy, verified.directory) == (V0, store.path(V0))


async def test_a_missing_tensor_is_named(store: PolicyStore, tmp_path: Path) -> None:
    publish(store, V0, {"model.norm.weight": (2,)})
    with pytest.raises(PolicyCorrupt, match=r"embed_tokens\.weight of the model is missing"):
        await reader(store, tmp_path).verify(V0)


async def test_a_tensor_the_model_does_not_have_is_named(
    store: PolicyStore, tmp_path: Path
) -> None:
    publish(store, V0, {**SHAPES, "model.extra": (1,)})
    with pytest.raises(PolicyCorrupt, match=r"the model has no tensor model\.extra"):
        await reader(store, tmp_path).verify(V0)


async def test_a_tensor_of_another_shape_is_named(store: PolicyStore, tmp_path: Path) -> None:
    publish(store, V0, {**SHAPES, "model.norm.weight": (3,)})
    with pytest.raises(
        PolicyCorrupt, match=r"model\.norm\.weight is \(3,\), the model's is \(2,\)"
    ):
        await reader(store, tmp_path).verify(V0)


async def test_a_tied_output_layer_may_be_stored_or_left_out(
    store: PolicyStore, tmp_path: Path
) -> None:
    publish(store, V0, {**SHAPES, "lm_head.weight": (4, 2)})
    assert (await reader(store, tmp_path).verify(V0)).policy == V0


async def test_an_output_layer_of_its_own_must_be_there(store: PolicyStore, tmp_path: Path) -> None:
    publish(store, V0, {**SHAPES, "lm_head.weight": (4, 2)})
    with pytest.raises(PolicyCorrupt, match=r"the model has no tensor lm_head\.weight"):
        await reader(store, tmp_path, tied=False).verify(V0)


async def test_a_changed_byte_is_found(store: PolicyStore, tmp_path: Path) -> None:
    publish(store, V0, SHAPES)
    file = store.path(V0) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(PolicyCorrupt, match="differs from the manifest"):
        await reader(store, tmp_path).verify(V0)


async def test_a_version_that_is_not_there_is_missing(store: PolicyStore, tmp_path: Path) -> None:
    with pytest.raises(PolicyMissing):
        await reader(store, tmp_path).verify(V0)
