"""A policy version is whole or invisible."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dapod.policy_store import PolicyCorrupt, PolicyMissing, PolicyStore
from dapod.types import PolicyVersion


def version(number: int, lineage: str = "aa") -> PolicyVersion:
    return PolicyVersion(number=number, lineage=lineage)


def write(directory: Path) -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, dtype=np.int32)}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")


@pytest.fixture
def store(tmp_path):
    return PolicyStore(tmp_path / "policies")


def test_a_published_version_is_listed_linked_and_verified(store):
    manifest = store.publish(version(3), write)
    assert set(manifest.tensors) == {"a", "b"}
    assert set(manifest.files) == {"config.json"}
    assert store.versions() == [version(3)]
    assert store.verify(version(3)) == store.root / "v3-aa"
    assert (store.root / "v3").resolve() == (store.root / "v3-aa").resolve()


def test_a_version_that_is_being_written_is_invisible(store):
    def look(directory: Path) -> None:
        write(directory)
        assert store.versions() == []
        with pytest.raises(PolicyMissing):
            store.verify(version(0))

    store.publish(version(0), look)


def test_a_write_that_failed_leaves_nothing_visible_and_can_be_repeated(store):
    def fail(directory: Path) -> None:
        write(directory)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        store.publish(version(0), fail)
    assert store.versions() == []
    store.publish(version(0), write)
    assert store.versions() == [version(0)]


def test_publishing_twice_keeps_the_first(store):
    first = store.publish(version(0), write)
    second = store.publish(version(0), lambda _: pytest.fail("must not write again"))
    assert first == second


def test_another_lineage_supersedes_without_overwriting(store):
    store.publish(version(5, "aa"), write)
    store.publish(version(5, "bb"), write)
    assert store.versions() == [version(5, "aa"), version(5, "bb")]
    assert (store.root / "v5").resolve().name == "v5-bb"


@pytest.mark.parametrize("offset", [-1, -20])
def test_one_flipped_byte_is_found_and_the_tensor_named(store, offset):
    store.publish(version(0), write)
    file = store.root / "v0-aa" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(PolicyCorrupt, match=r"tensor [ab] differs from the manifest"):
        store.verify(version(0))


def test_a_truncated_file_a_missing_file_and_a_changed_config_are_found(store):
    for damage, says in [
        (
            lambda d: (d / "model.safetensors").write_bytes(b"\x01"),
            r"not a safetensors|no readable",
        ),
        (lambda d: (d / "config.json").unlink(), r"file config\.json is missing"),
        (lambda d: (d / "config.json").write_text("{ }"), r"file config\.json differs"),
    ]:
        store.publish(version(0), write)
        damage(store.path(version(0)))
        with pytest.raises(PolicyCorrupt, match=says):
            store.verify(version(0))
        store.prune(keep=[], newest=0)


def change_header(file: Path, change: Callable[[dict], object]) -> None:
    """The same bytes of tensors behind another header."""
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[begin:])


NO_TENSOR = r"header: it does not say what tensor a is and where it lies"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h["a"].pop("dtype") and None, NO_TENSOR),
        (lambda h: h["a"].update(dtype=7), NO_TENSOR),
        (lambda h: h["a"].update(shape=6), NO_TENSOR),
        (lambda h: h["a"].update(shape=[2, None]), NO_TENSOR),
        (lambda h: h["a"].update(shape=[-2, -3]), NO_TENSOR),
        (lambda h: h["a"].update(data_offsets=[24, 0]), NO_TENSOR),
        (lambda h: h["a"].update(data_offsets=[-1, 24]), NO_TENSOR),
        (lambda h: h["a"].update(data_offsets=[0, "x"]), NO_TENSOR),
        (lambda h: h["a"].update(data_offsets=[0, 8, 24]), NO_TENSOR),
        (lambda h: h.update(a=[]), NO_TENSOR),
        (lambda h: [h], "header: it is not a JSON object"),
        (lambda h: h["a"].update(data_offsets=[0, 999]), r"bytes, its header describes \d+"),
        (lambda h: {"b": {**h["b"], "data_offsets": [0, 16]}}, "its header describes"),
    ],
)
def test_a_damaged_header_is_corrupt_and_its_file_named(store, change, says):
    store.publish(version(0), write)
    file = store.path(version(0)) / "model.safetensors"
    change_header(file, change)
    with pytest.raises(PolicyCorrupt, match=says) as refused:
        store.verify(version(0))
    assert str(refused.value).startswith(str(file))


def test_a_header_that_says_it_is_as_long_as_memory_is_not_read(store, monkeypatch):
    monkeypatch.setattr("dapod.policy_store._HEADER_BYTES", 10)
    with pytest.raises(PolicyCorrupt, match="is not a safetensors file"):
        store.publish(version(0), write)


def test_a_manifest_that_belongs_to_another_version_is_refused(store):
    store.publish(version(0), write)
    (store.root / "v0-aa").rename(store.root / "v1-aa")
    with pytest.raises(PolicyCorrupt, match="says it is v0-aa"):
        store.verify(version(1))


def test_a_manifest_that_cannot_be_read_is_corrupt_not_missing(store):
    store.publish(version(0), write)
    lists = {"number": 0, "lineage": "aa", "tensors": ["a"], "files": ["b"], "bytes": 1}
    for body in ({"number": 0}, lists):
        (store.path(version(0)) / "manifest.json").write_text(json.dumps(body))
        with pytest.raises(PolicyCorrupt, match="cannot be read"):
            store.manifest(version(0))


def test_pruning_keeps_the_newest_and_whatever_is_in_use(store):
    for number in range(5):
        store.publish(version(number), write)
    removed = store.prune(keep=[version(1)], newest=2)
    assert removed == [version(0), version(2)]
    assert store.versions() == [version(1), version(3), version(4)]
    assert not (store.root / "v0").is_symlink()


def test_publishing_nothing_is_refused(store):
    with pytest.raises(PolicyCorrupt, match="no safetensors"):
        store.publish(version(0), lambda _: None)


def test_published_files_can_be_read_by_pods_of_another_user(store):
    def write_privately(directory: Path) -> None:
        write(directory)
        (directory / "model.safetensors").chmod(0o600)

    store.publish(version(0), write_privately)
    modes = {file.stat().st_mode & 0o777 for file in store.path(version(0)).iterdir()}
    assert modes == {0o644}


def test_what_a_crashed_writer_left_is_swept(store):
    store.publish(version(0), write)
    (store.root / ".v1-aa.tmp").mkdir()
    (store.root / ".v0-bb.gone").mkdir()
    store.sweep()
    assert {entry.name for entry in store.root.iterdir()} == {"v0-aa", "v0"}
