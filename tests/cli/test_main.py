"""The command line: bad input is one sentence and exit status 2; nothing is started."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from dapod.cli.__main__ import main
from dapod.cli.run_dir import RunDirectory, choose
from dapod.config import load
from tests.cli.conftest import ROOT

Refused = Callable[..., str]

EVALUATION = [
    *("evaluation.every_steps=2", "evaluation.data.path=rows.jsonl"),
    *("evaluation.data.prompt_column=question", "evaluation.data.verifier=integer"),
]
"""Settings that add one to the run of `config_file`."""


def setting(*changes: str) -> list[str]:
    """As arguments."""
    return [word for change in changes for word in ("--set", change)]


@pytest.fixture
def refused(capsys, tmp_path: Path, monkeypatch) -> Refused:
    """Gives the sentence a `dapod run` is refused with, and makes sure that it started nothing."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as exit:
            raise SystemExit(main(["run", *map(str, arguments)]))
        out, err = capsys.readouterr()
        assert (exit.value.code, out) == (2, "")
        assert err.startswith("dapod: ")
        assert err.count("\n") == 1
        assert not (tmp_path / "runs").exists()
        return err

    return run


def test_the_installed_command_refuses_in_one_line(dapod, config_file: Path) -> None:
    said = dapod("run", config_file, "--set", "algorithm.group_siz=8")
    assert (said.status, said.out) == (2, "")
    assert said.err == (
        f"dapod: {config_file}: unknown key algorithm.group_siz "
        f"(did you mean algorithm.group_size?)\n"
    )


def test_help_shows_examples(dapod) -> None:
    said = dapod("run", "--help")
    assert said.status == 0
    assert "--resume" in said.out and "examples:" in said.out


def test_a_missing_config(refused: Refused) -> None:
    assert "cannot read the config nosuch.toml" in refused("nosuch.toml")


def test_a_malformed_config(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[run\n")
    assert "is not valid TOML" in refused("bad.toml")


def test_an_impossible_combination(refused: Refused, config_file: Path) -> None:
    sentence = refused(config_file, "--set", "algorithm.prompts_per_update=3")
    assert "must be a multiple of algorithm.prompts_per_update" in sentence


def test_steps_that_are_no_number(refused: Refused, config_file: Path) -> None:
    assert "run.steps = 'many'" in refused(config_file, "--steps", "many")


def test_no_rollouts(refused: Refused, config_file: Path) -> None:
    assert "--rollouts: '0' is not a number" in refused(config_file, "--rollouts", 0)


def test_no_config(refused: Refused) -> None:
    assert "required: CONFIG (see dapod run --help)" in refused()


def test_responses_longer_than_the_models_context(refused: Refused, config_file: Path) -> None:
    changes = ("sampling.max_response_tokens=60", "trainer.tokens_per_micro_batch=100")
    assert "the model's context is 64 tokens" in refused(config_file, *setting(*changes))


def test_a_model_that_is_not_there(refused: Refused, config_file: Path) -> None:
    shutil.rmtree(config_file.parent / "model")
    assert "dapod model fetch" in refused(config_file)


def test_a_model_without_safetensors(refused: Refused, config_file: Path) -> None:
    (config_file.parent / "model" / "model.safetensors").unlink()
    assert "holds no .safetensors file" in refused(config_file)


def test_a_data_set_without_the_column(refused: Refused, config_file: Path) -> None:
    sentence = refused(config_file, "--set", "data.answer_column=key")
    assert "line 1 has no column 'key' (its columns: 'question', 'answer')" in sentence


def test_no_room_for_two_policies(refused: Refused, config_file: Path) -> None:
    size = shutil.disk_usage(config_file.parent).free
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"weights": tensor}).encode()
    file = config_file.parent / "model" / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(file, 8 + len(header) + size)  # a hole, no bytes
    assert "two policies take" in refused(config_file)


def test_engines_with_more_memory_than_there_is(refused: Refused, config_file: Path) -> None:
    sentence = refused(config_file, "--set", "rollout.memory_gib=100000", "--rollouts", 2)
    assert "rollout.memory_gib = 100000 for each of 2 rollout(s) is more than" in sentence


def test_an_unreachable_redis(refused: Refused, config_file: Path) -> None:
    sentence = refused(config_file, "--redis-url", "redis://me:secret@127.0.0.1:1/0")
    assert "redis://me:***@127.0.0.1:1/0: no answer to PING" in sentence
    assert "secret" not in sentence


def test_a_redis_url_that_cannot_be_read(refused: Refused, config_file: Path, monkeypatch) -> None:
    monkeypatch.setenv("DAPOD_REDIS_URL", "redis://:sec/ret@127.0.0.1:6379/0")
    sentence = refused(config_file)
    assert "redis URL redis://:***@127.0.0.1:6379/0: it cannot be read" in sentence
    assert "sec" not in sentence and "ret@" not in sentence


def test_no_report_shows_the_redis_url(dapod, config_file: Path) -> None:
    known = {"DAPOD_REDIS_URL": "redis://:secret@127.0.0.1:6379/0"}
    for words in (("config", "show"), ("config", "check")):
        said = dapod(*words, config_file, environment=known)
        assert said.out and "secret" not in said.out + said.err


def test_a_redis_url_of_another_kind(refused: Refused, config_file: Path) -> None:
    assert "must begin with redis://" in refused(config_file, "--redis-url", "http://127.0.0.1")


def test_a_port_in_use(refused: Refused, config_file: Path, monkeypatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("DAPOD_OPS_PORT", str(port))
        sentence = refused(config_file)
    assert f"port {port} (of buffer, from DAPOD_OPS_PORT={port}) is in use" in sentence


def test_a_run_directory_of_another_config(refused: Refused, config_file: Path) -> None:
    directory = begun(config_file)
    sentence = refused(config_file, "--run-dir", directory.path, "--set", "algorithm.group_size=8")
    assert "belongs to another config (algorithm.group_size is 4 there and 8 here)" in sentence


def test_a_run_directory_that_is_taken(refused: Refused, config_file: Path) -> None:
    directory = begun(config_file)
    assert "pass --resume to go on with it" in refused(config_file, "--run-dir", directory.path)


def test_a_directory_of_something_else(refused: Refused, config_file: Path) -> None:
    assert "not a run directory" in refused(config_file, "--run-dir", config_file.parent)


def test_nothing_to_resume(refused: Refused, config_file: Path) -> None:
    assert "holds no run to go on with" in refused(config_file, "--resume")


def test_nothing_left_to_train(refused: Refused, config_file: Path) -> None:
    directory = begun(config_file)
    (directory.path / "summary.json").write_text('{"steps": 4}')
    sentence = refused(config_file, "--run-dir", directory.path, "--resume")
    assert "has trained its 4 steps: pass --steps with a larger number" in sentence


def test_a_checkpoint_of_another_number_of_ranks(refused: Refused, config_file: Path) -> None:
    directory = begun(config_file)
    checkpoint = directory.path / "checkpoints" / "step-2"
    checkpoint.mkdir()
    (checkpoint / "checkpoint.json").write_text(json.dumps({"step": 2, "ranks": 2}))
    sentence = refused(config_file, "--run-dir", directory.path, "--resume")
    assert "trainer.ranks = 2 and cannot be loaded with 1" in sentence


def test_a_directory_that_another_runner_holds(refused: Refused, config_file: Path) -> None:
    directory = begun(config_file)
    with directory.locked():
        sentence = refused(config_file, "--run-dir", directory.path, "--resume")
    assert f"is in use by another dapod run (process {os.getpid()})" in sentence


def test_a_right_config_is_called_right(dapod, config_file: Path) -> None:
    said = dapod("config", "check", config_file, "--set", "run.steps=7")
    assert (said.status, said.err) == (0, "")
    assert "7 steps of 2 groups of 4 rollouts" in said.out
    assert f"data {config_file.parent}/rows.jsonl: 9 rows read, 9 kept" in said.out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["data.path=hub:owner/name"], "data hub:owner/name: not read; dapod run downloads it"),
        (["data.path=none.jsonl"], "none.jsonl: not read; it is not on this machine"),
        (["model.path=none"], "9 rows read, 9 kept"),
        (["model.path=none"], "none: not on this machine; neither context nor prompt lengths are"),
        (
            [*EVALUATION, "evaluation.data.path=none.jsonl"],
            "evaluation data {}/none.jsonl: not read",
        ),
        (EVALUATION, "evaluation data {}/rows.jsonl: 9 rows read, 9 kept"),
    ],
)
def test_a_check_says_what_it_has_read_and_what_is_not_there(
    capsys, config_file: Path, changes: list[str], says: str
) -> None:
    assert main(["config", "check", str(config_file), *setting(*changes)]) == 0
    assert says.format(config_file.parent) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["data.answer_column=key"], "data.answer_column: {}/rows.jsonl line 1 has no column"),
        (["sampling.max_prompt_tokens=4"], "9 of 9 prompts are longer than"),
        (
            ["sampling.max_response_tokens=60", "trainer.tokens_per_micro_batch=100"],
            "the model's context is 64 tokens",
        ),
        (["data.verifier=nonsense"], "data.verifier = 'nonsense' is not a verifier"),
        (
            [*EVALUATION, "evaluation.data.verifier=nonsense"],
            "evaluation.data.verifier = 'nonsense' is not a verifier",
        ),
        ([*EVALUATION, "evaluation.data.answer_column=key"], "evaluation.data.answer_column: {}"),
        ([*EVALUATION, "evaluation.max_response_tokens=60"], "the model's context is 64 tokens"),
    ],
)
def test_what_a_run_is_refused_for_a_check_refuses_in_the_same_words(
    refused: Refused, capsys, config_file: Path, changes: list[str], says: str
) -> None:
    sentence = refused(config_file, *setting(*changes))
    assert says.format(config_file.parent) in sentence
    assert main(["config", "check", str(config_file), *setting(*changes)]) == 2
    assert capsys.readouterr() == ("", sentence)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_check_refuses_a_model_that_is_not_whole(capsys, config_file: Path, name: str) -> None:
    (config_file.parent / "model" / name).unlink()
    assert main(["config", "check", str(config_file)]) == 2
    assert "model.path: " in capsys.readouterr().err


AIME = ROOT / "configs" / "eval_aime2024.toml"


def test_the_config_of_an_evaluation_is_checked_as_one(capsys, config_file: Path) -> None:
    assert main(["config", "check", str(AIME)]) == 0
    out = capsys.readouterr().out
    assert "32 answers to each problem, at most 20480 tokens each" in out
    assert "data hub:BytedTsinghua-SIA/AIME-2024: not read; dapod evaluate downloads it" in out
    here = config_file.parent
    own = [
        *(f"model.path={here}/model", f"data.path={here}/rows.jsonl"),
        *("data.prompt_column=question", "data.answer_column=answer"),
    ]
    assert main(["config", "check", str(AIME), *setting(*own)]) == 2
    said = capsys.readouterr().err
    assert "9 of 9 prompts are longer than what the model's context of 64 tokens leaves" in said
    assert (
        main(["config", "check", str(AIME), *setting(*own, "sampling.max_response_tokens=9")]) == 0
    )
    assert f"data {here}/rows.jsonl: 9 rows read, 9 kept" in capsys.readouterr().out


def test_a_mistake_in_the_config_of_an_evaluation_is_named_alone(capsys) -> None:
    assert main(["config", "check", str(AIME), *setting("evaluation.sample=3")]) == 2
    assert capsys.readouterr().err == (
        f"dapod: {AIME} (of an evaluation: it has no [run]): "
        f"unknown key evaluation.sample (did you mean evaluation.samples?)\n"
    )


def test_the_values_of_an_evaluation_are_shown_with_their_sources(capsys) -> None:
    assert main(["config", "show", str(AIME), *setting("data.long_prompts=filter")]) == 0
    shown = dict(map(str.strip, line.split("#")) for line in capsys.readouterr().out.splitlines())
    assert shown["evaluation.pass_at = [1, 8, 32]"] == str(AIME)
    assert shown['data.long_prompts = "filter"'] == "--set"
    assert shown["evaluation.seed = 0"] == "default"


def test_prompts_longer_than_the_limit(refused: Refused, config_file: Path) -> None:
    sentence = refused(config_file, "--set", "sampling.max_prompt_tokens=4")
    assert "9 of 9 prompts are longer than sampling.max_prompt_tokens = 4 (first: " in sentence
    assert "rows.jsonl line 1; longest: 5 tokens): raise it to 5, or set data.long" in sentence


def test_every_value_of_a_config_is_shown_with_its_source(dapod, config_file: Path) -> None:
    changes = ("--set", "algorithm.preset=grpo", "--set", "algorithm.clip_low = 0.1")
    said = dapod("config", "show", config_file, *changes)
    assert (said.status, said.err) == (0, "")
    pairs = [line.split("#") for line in said.out.splitlines()]
    shown = {value.strip(): source.strip() for value, source in pairs}
    assert shown["algorithm.group_size = 4"] == str(config_file)
    assert shown['algorithm.preset = "grpo"'] == shown["algorithm.clip_low = 0.1"] == "--set"
    assert shown["algorithm.clip_high = 0.2"].startswith("preset grpo (GRPO eq. 3")
    assert shown["algorithm.importance_weight_cap = 2.0"] == "default"
    assert 'run.name = "tiny"' in shown and "buffer.queue_prompts = 64" in shown


def test_a_table_of_a_table_is_shown_too(dapod, config_file: Path) -> None:
    said = dapod("config", "show", config_file, *setting(*EVALUATION))
    assert (said.status, said.err) == (0, "")
    shown = dict(map(str.strip, line.split("#")) for line in said.out.splitlines())
    assert shown['evaluation.data.verifier = "integer"'] == "--set"
    assert shown["evaluation.samples = 1"] == "default"


def begun(config_file: Path) -> RunDirectory:
    """A run directory as a start leaves it, outside `runs/`."""
    config = load(config_file)
    given = config_file.parent / "begun"
    directory = choose(config, given=given, resume=False, redis="embedded")
    directory.open(config, "embedded")
    return directory
