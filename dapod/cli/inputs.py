"""What a run or an evaluation reads, a model and data sets: mistakes are said before it starts.

A start needs all of it. `dapod config check` makes the same checks of what is on this machine,
downloads nothing, and says what is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from dapod.cli.evaluate import model_choice
from dapod.cli.evaluate.problems import read_problems
from dapod.config import Data, EvalConfig, RunConfig, within
from dapod.config.source import HubSource, LocalSource
from dapod.dataset import DataSet, read_data
from dapod.dataset.tokenised import read_tokenised
from dapod.model_files import check_model

Read = Callable[[Data], DataSet]
"""Reads and checks, as far as the model is there."""


def check(config: RunConfig) -> DataSet:
    """The training data set. Raises `ConfigError` unless all inputs are there and right."""
    check_model(config)
    data_set = _tokenised(config, config.data)
    if config.evaluation is not None:
        with within("evaluation"):
            _tokenised(config, config.evaluation.data)
    return data_set


def of_run(config: RunConfig) -> list[str]:
    """What is there of a run's inputs, and what is not. Raises `ConfigError` for what is wrong."""
    here = Path(config.model.path).is_dir()
    if here:
        check_model(config)
    read = partial(_tokenised, config) if here else read_data
    lines = [*_absent(config.model.path), _said(config.data, read, "dapod run")]
    if config.evaluation is not None:
        with within("evaluation"):
            lines.append(f"evaluation {_said(config.evaluation.data, read, 'dapod run')}")
    return lines


def of_evaluation(config: EvalConfig) -> list[str]:
    """The same of the inputs of `dapod evaluate`, whose model may be a run's newest policy."""
    path, read = Path(config.model.path), read_data
    if path.is_dir():
        read = partial(_problems, config, model_choice.choose(path))
    return [*_absent(config.model.path), _said(config.data, read, "dapod evaluate")]


def _absent(model: str) -> list[str]:
    if Path(model).is_dir():
        return []
    return [f"model {model}: not on this machine; neither context nor prompt lengths are checked"]


def _said(data: Data, read: Read, command: str) -> str:
    source = data.source
    if isinstance(source, HubSource):
        return f"data {data.path}: not read; {command} downloads it"
    if isinstance(source, LocalSource) and not source.path.exists():
        return f"data {source.path}: not read; it is not on this machine"
    return f"data {read(data)}"


def _tokenised(config: RunConfig, data: Data) -> DataSet:
    return read_tokenised(
        data,
        model=Path(config.model.path),
        max_prompt_tokens=config.sampling.max_prompt_tokens,
    ).data_set


def _problems(config: EvalConfig, model: model_choice.ChosenModel, data: Data) -> DataSet:
    return read_problems(config, model).data_set
