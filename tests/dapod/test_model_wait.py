"""The init container's program: waits for a model, says for what, and not for ever."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from dapod import config
from dapod.config import ConfigError, RunConfig
from dapod.model_wait import wait

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"
WEIGHTS = save({"a": np.ones(100, dtype=np.float32)})


def a_run(model: Path) -> RunConfig:
    return config.load(QUICKSTART, [f"model.path={model}"])


def put_model(directory: Path) -> None:
    beside = directory.with_name("beside")
    beside.mkdir()
    (beside / "model.safetensors").write_bytes(WEIGHTS)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (beside / name).write_text(json.dumps({}))
    beside.rename(directory)


def test_a_whole_model_is_not_waited_for(tmp_path: Path) -> None:
    put_model(tmp_path / "model")
    wait(a_run(tmp_path / "model"), seconds=0)


def test_a_model_that_comes_later_ends_the_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = threading.Timer(0.2, put_model, [tmp_path / "model"])
    later.start()
    wait(a_run(tmp_path / "model"), seconds=60)
    later.join()
    assert "waiting: model.path" in capsys.readouterr().err


def test_a_model_that_is_being_copied_is_waited_for_and_what_is_missing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    put_model(model)
    weights, said = model / "model.safetensors", f"{tmp_path}/model/model.safetensors has "
    weights.write_bytes(WEIGHTS[:-1])
    waiting = threading.Thread(target=wait, args=[a_run(model)], kwargs={"seconds": 60})
    waiting.start()
    deadline, heard = time.monotonic() + 30, ""
    while said not in heard:
        assert time.monotonic() < deadline and waiting.is_alive()
        heard += capsys.readouterr().err
        waiting.join(0.05)
    weights.write_bytes(WEIGHTS)
    waiting.join(30)
    assert not waiting.is_alive()
    assert f"waiting: model.path: {said}{len(WEIGHTS) - 1} bytes" in heard


def test_the_wait_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a directory"):
        wait(a_run(tmp_path / "model"), seconds=0)


def test_a_config_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dapod.model_wait"],
        env={**os.environ, "DAPOD_CONFIG": str(tmp_path / "none.toml")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot read the config" in done.stderr
