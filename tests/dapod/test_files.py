"""Data sets, model directories, the environment: what is missing is named at once."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from dapod import config as configuration
from dapod import model_files
from dapod.config import ConfigError
from dapod.dataset import read_rows
from dapod.environment import Environment

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"


def with_data(tmp_path, text: str):
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    return configuration.load(QUICKSTART, [f"data.path={path}"]).data


def test_the_quickstart_data_has_every_one_digit_sum_and_difference():
    rows = read_rows(configuration.load(QUICKSTART).data)
    assert len({row.message for row in rows}) == 200
    assert rows[0].message == "What is 0 + 0? Reply with only the number."
    assert rows[0].answer == "0"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"question": "x"}\n', "line 1 has no column 'answer'"),
        ('{"answer": "x"}\n', "data.prompt_column"),
        ("\nnonsense\n", "line 2 is not JSON"),
        ("[1]\n", "line 1 is not a JSON object"),
        ("\n", "holds no rows"),
    ],
)
def test_a_data_set_that_cannot_be_used_says_which_line_and_why(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        read_rows(with_data(tmp_path, text))


def weights(*names: str) -> bytes:
    """A safetensors file with these tensors."""
    return save({name: np.ones(100, dtype=np.float32) for name in names})


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(weights("a", "b"))
    (directory / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text("{}")
    return directory


def config_of(model: Path, *overrides: str):
    return configuration.load(QUICKSTART, [f"model.path={model}", *overrides])


def test_a_whole_model_directory_passes(model):
    model_files.check_model(config_of(model))


def test_a_model_without_safetensors_or_tokenizer_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="is not a directory"):
        model_files.check_model(config_of(tmp_path / "none"))
    (model / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        model_files.check_model(config_of(model))
    (model / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no \.safetensors"):
        model_files.check_model(config_of(model))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 988097824\n"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda whole: POINTER, r"model\.safetensors is not a safetensors file: .*git lfs pull"),
        (lambda whole: b"", r"model\.safetensors is not a safetensors file"),
        (lambda whole: whole[:-1], r"model\.safetensors has \d+ bytes, its header describes \d+"),
        (lambda whole: whole[:50], r"is not a safetensors file"),
        (lambda whole: whole + b"x", r"has \d+ bytes, its header describes \d+"),
    ],
)
def test_weights_that_are_a_pointer_or_half_a_file_are_refused(model, damage, says):
    file = model / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigError, match=f"model.path: .*{says}"):
        model_files.check_model(config_of(model))


def shard(model: Path) -> tuple[Path, Path]:
    """Lays the weights down in two files with an index."""
    (model / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, tensor in zip(names, "ab", strict=True):
        (model / name).write_bytes(weights(tensor))
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return model / names[0], model / names[1]


def test_a_model_in_shards_needs_all_that_its_index_names(model):
    _, second = shard(model)
    model_files.check_model(config_of(model))
    second.unlink()
    with pytest.raises(ConfigError, match=r"has no model-00002-of-00002\.safetensors, but .*index"):
        model_files.check_model(config_of(model))
    second.symlink_to(model / "gone")
    with pytest.raises(ConfigError, match=r"has no model-00002-of-00002\.safetensors"):
        model_files.check_model(config_of(model))


def test_shards_without_an_index_or_with_half_of_one_are_refused(model):
    shard(model)
    index = model / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model')
    with pytest.raises(ConfigError, match=r"cannot read .*index\.json"):
        model_files.check_model(config_of(model))
    index.write_text("{}")
    with pytest.raises(ConfigError, match=r"index\.json has no weight_map"):
        model_files.check_model(config_of(model))
    index.unlink()
    with pytest.raises(ConfigError, match=r"neither model\.safetensors nor model\.safe.*index"):
        model_files.check_model(config_of(model))


def test_a_response_longer_than_the_context_is_refused(model):
    config = config_of(
        model, "sampling.max_response_tokens=4000", "trainer.tokens_per_micro_batch=8000"
    )
    with pytest.raises(ConfigError, match="context is 2048 tokens"):
        model_files.check_model(config)


def test_a_disk_without_room_for_two_policies_is_refused(model, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    two = 2 * (model / "model.safetensors").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(two, 1, two - 1))
    with pytest.raises(ConfigError, match="two policies"):
        model_files.check_disk(config_of(model), tmp_path / "runs" / "deep")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(two, 0, two))
    model_files.check_disk(config_of(model), tmp_path / "runs" / "deep")


def test_a_missing_variable_and_a_bad_port_are_named():
    with pytest.raises(ConfigError, match="DAPOD_BUFFER_ADDRESS is not set"):
        _ = Environment(variables={}).buffer_address
    with pytest.raises(ConfigError, match="DAPOD_OPS_PORT=http is not a port"):
        _ = Environment(variables={"DAPOD_OPS_PORT": "http"}).ops_port


def test_policies_lie_in_the_run_directory_unless_shared_storage_is_named():
    local = Environment(variables={"DAPOD_RUN_DIR": "run"})
    shared = Environment(variables={"DAPOD_RUN_DIR": "run", "DAPOD_POLICY_DIR": "mnt"})
    assert local.policy_dir == Path("run/policies")
    assert shared.policy_dir == Path("mnt")


def test_the_fingerprint_sees_other_weights_and_other_tokens(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1_000_000))
    first = model_files.fingerprint(tmp_path)
    assert model_files.fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(bytes(500_000) + b"\x01" * 500_000)
    other_weights = model_files.fingerprint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    other_tokens = model_files.fingerprint(tmp_path)
    assert len({first, other_weights, other_tokens}) == 3
    (tmp_path / "README.md").write_text("words")
    assert model_files.fingerprint(tmp_path) == other_tokens
