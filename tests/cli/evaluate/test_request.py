"""What is evaluated: the flags, the file, or what a run directory brings."""

from pathlib import Path

import pytest

from dapod.cli.evaluate.request import Flags, read
from dapod.config import ConfigError
from tests.cli.evaluate.conftest import write_run

SHIPPED = Path(__file__).parents[3] / "configs" / "eval_aime2024.toml"
SETTINGS = {"data.verifier": "integer", "sampling.max_response_tokens": "8"}


def test_flags_alone_are_enough_and_the_rest_is_the_papers(model: Path, rows: Path) -> None:
    request = read(Flags(model=model, data=str(rows), settings=SETTINGS))
    config = request.config
    assert (config.evaluation.samples, config.pass_at) == (32, [32])
    assert (config.sampling.temperature, config.sampling.top_p) == (1.0, 0.7)
    assert request.out == Path("evaluations/tiny-rows").resolve()


def test_flags_win_over_the_file_and_set_wins_over_flags(model: Path, rows: Path) -> None:
    flags = Flags(
        config=SHIPPED,
        model=model,
        data=str(rows),
        settings={"evaluation.samples": "4", "evaluation.pass_at": "[1,4]"},
        overrides=["evaluation.samples=8"],
    )
    config = read(flags).config
    assert (config.evaluation.samples, config.pass_at) == (8, [1, 4])
    assert config.data.verifier == "dapo_math" and config.data.path == str(rows)
    assert read(flags).out == Path("evaluations/tiny-aime2024").resolve()


def test_a_run_brings_its_data_and_lengths_but_not_how_it_samples(
    tmp_path: Path, rows: Path
) -> None:
    write_run(tmp_path / "run", rows, "v0-aaa")
    config = read(Flags(model=tmp_path / "run")).config
    assert config.data.path == str(rows) and config.data.verifier == "integer"
    assert config.sampling.max_response_tokens == 16 and config.sampling.top_p == 0.7
    assert config.rollout.groups_in_flight == 3


def test_of_a_run_the_newest_policy_is_taken(tmp_path: Path, rows: Path) -> None:
    write_run(tmp_path / "run", rows, "v2-zzz", "v10-bbb", "v10-aaa")
    request = read(Flags(model=tmp_path / "run"))
    assert request.config.model.path == str(tmp_path / "run" / "policies" / "v10-aaa")
    assert str(request.model) == f"policy v10-aaa of {tmp_path / 'run'}"
    assert request.out == tmp_path / "run" / "evaluations" / "v10-aaa-rows"


def test_a_link_to_a_policy_means_the_policy_it_points_to_now(tmp_path: Path, rows: Path) -> None:
    write_run(tmp_path / "run", rows, "v2-zzz")
    request = read(
        Flags(
            model=tmp_path / "run" / "policies" / "v2",
            data=str(rows),
            settings=SETTINGS,
        )
    )
    assert request.model.directory.name == "v2-zzz"
    assert request.out == tmp_path / "run" / "evaluations" / "v2-zzz-rows"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["evaluation.samples=0"], "evaluation.samples = 0"),
        (["evaluation.samples=4", "evaluation.pass_at=[1,8]"], "pass@8 cannot be had of"),
        (["evaluation.pass_at=[0]"], "pass@0 cannot be had of"),
        (["sampling.temperature=0"], "set evaluation.samples = 1"),
        (["sampling.top_p=0"], "sampling.top_p = 0"),
        (["evaluation.sample=3"], "did you mean evaluation.samples?"),
        (["data.template=nothing"], "must contain {prompt}"),
    ],
)
def test_what_cannot_be_is_refused(
    model: Path, rows: Path, overrides: list[str], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(Flags(model=model, data=str(rows), settings=SETTINGS, overrides=overrides))
    assert says in str(caught.value)


def test_what_is_missing_is_named(model: Path, rows: Path, tmp_path: Path) -> None:
    def refusal(**flags: object) -> str:
        with pytest.raises(ConfigError) as caught:
            read(Flags(**flags))  # type: ignore[arg-type]
        return str(caught.value)

    assert "which model?" in refusal(data=str(rows))
    assert "which problems?" in refusal(model=model)
    said = refusal(model=model, data=str(rows))
    assert "data.verifier is missing" in said
    assert "sampling.max_response_tokens is missing" in said
    nowhere = tmp_path / "nowhere"
    assert f"no directory {nowhere}" in refusal(model=nowhere)
    assert "neither a run directory" in refusal(model=tmp_path, data=str(rows), settings=SETTINGS)
    write_run(tmp_path / "young", rows)
    assert "has published no policy yet" in refusal(model=tmp_path / "young")


def test_a_name_on_the_hub_stays_as_it_is(model: Path) -> None:
    request = read(Flags(config=SHIPPED, model=model))
    assert request.config.data.path == "hub:BytedTsinghua-SIA/AIME-2024"
    other = read(Flags(model=model, data="hub:someone/else/test-*.parquet", settings=SETTINGS))
    assert other.config.data.path == "hub:someone/else/test-*.parquet"
    assert other.out.name == "tiny-test"


def test_answers_too_long_for_one_message_are_asked_in_several(model: Path, rows: Path) -> None:
    settings = SETTINGS | {"sampling.max_response_tokens": "20480", "evaluation.samples": "1024"}
    config = read(Flags(model=model, data=str(rows), settings=settings)).config
    assert 1 < config.answers_per_call < 1024
    assert config.as_run(max_prompt_tokens=100).algorithm.group_size == config.answers_per_call
