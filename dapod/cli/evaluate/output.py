"""The output directory: whose it is, what is finished in it, and how results are added.

    evaluation.json   what is evaluated: another evaluation in the same directory is refused
    problems.jsonl    one line for each finished problem, in the order they finished
    responses.jsonl   the texts, line by line the same problems (evaluation.keep_responses)
    summary.json      at the end
    services.toml, logs/, services.json (while it runs)

A problem's line is written when all its answers are judged: what was killed half-way is sampled
again, whole. The texts come first, so that a problem in problems.jsonl has them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapod.cli.evaluate.model_choice import ChosenModel
from dapod.cli.evaluate.problems import Problems
from dapod.cli.evaluate.record import Answered, ProblemRecord
from dapod.config import ConfigError, EvalConfig
from dapod.model_files import read_json

Identity = Mapping[str, Any]


def identity(config: EvalConfig, model: ChosenModel, problems: Problems) -> Identity:
    """Everything that changes what the answers and their verdicts are, by `section.key`.

    Where files lie does not, nor how much of a machine is used.
    """
    data, sampling, task = config.data, config.sampling, config.evaluation
    return {
        "model": model.fingerprint,
        "data": problems.digest,
        "data.chat": data.chat,
        "data.verifier": data.verifier,
        "sampling.max_response_tokens": sampling.max_response_tokens,
        "sampling.temperature": sampling.temperature,
        "sampling.top_p": sampling.top_p,
        "evaluation.samples": task.samples,
        "evaluation.seed": task.seed,
        "evaluation.keep_responses": task.keep_responses,
        "reward.deadline_seconds": config.reward.deadline_seconds,
        "reward.memory_mib": config.reward.memory_mib,
    }


@dataclass(frozen=True, kw_only=True)
class Output:
    """One evaluation's place."""

    path: Path
    identity: Identity

    @property
    def problems_file(self) -> Path:
        return self.path / "problems.jsonl"

    @property
    def responses_file(self) -> Path:
        return self.path / "responses.jsonl"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def services_config(self) -> Path:
        return self.path / "services.toml"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def check(self) -> None:
        """Only looks. Raises `ConfigError` when the directory is another evaluation's."""
        if (self.path / "evaluation.json").is_file():
            self._compare(read_json(self.path / "evaluation.json").get("identity", {}))
        elif self.path.exists() and (not self.path.is_dir() or _occupied(self.path)):
            raise ConfigError(
                f"{self.path} is not an evaluation's directory and not empty: choose another --out"
            )

    def open(self, about: Mapping[str, Any]) -> list[ProblemRecord]:
        """Makes it, or cuts off what a killed command left half-written; the finished problems.

        `about` is written beside the identity, for people.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        file = self.path / "evaluation.json"
        if not file.is_file():
            body = {**about, "identity": self.identity}
            _write_whole(file, json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        records = self.records()
        _keep_lines(self.problems_file, len(records))
        _keep_lines(self.responses_file, len(records))
        return records

    def records(self) -> list[ProblemRecord]:
        """Of all whole lines."""
        return [ProblemRecord.from_json(json.loads(line)) for line in _lines(self.problems_file)]

    def append(self, answered: Answered, record: ProblemRecord) -> None:
        """Both lines are on the disk when it returns."""
        if self.identity["evaluation.keep_responses"]:
            _append(self.responses_file, answered.responses())
        _append(self.problems_file, record.to_json())

    def _compare(self, theirs: Mapping[str, Any]) -> None:
        changes = [
            f"{key} is {theirs.get(key)!r} there and {value!r} here"
            for key, value in self.identity.items()
            if theirs.get(key) != value
        ]
        if changes:
            raise ConfigError(
                f"{self.path} holds another evaluation ({', '.join(changes)}): "
                f"choose another --out, or ask for the same to go on with it"
            )


def _append(file: Path, body: Mapping[str, Any]) -> None:
    with file.open("ab") as stream:
        stream.write(json.dumps(body, ensure_ascii=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _lines(file: Path) -> Iterator[bytes]:
    """Whole ones."""
    if file.is_file():
        with file.open("rb") as stream:
            yield from (line for line in stream if line.endswith(b"\n"))


def _keep_lines(file: Path, count: int) -> None:
    """Cuts off everything after the first `count` lines."""
    end = sum(len(line) for _, line in zip(range(count), _lines(file), strict=False))
    if file.is_file() and file.stat().st_size > end:
        os.truncate(file, end)


def _write_whole(file: Path, text: str) -> None:
    beside = file.with_suffix(".tmp")
    beside.write_text(text)
    os.replace(beside, file)


def _occupied(path: Path) -> bool:
    """By more than the lock of a start that was refused."""
    return any(entry.name != ".lock" for entry in path.iterdir())
