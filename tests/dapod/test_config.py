"""The config refuses what cannot work, in one sentence that says what to change."""

from pathlib import Path

import pytest

from dapod import config as configuration
from dapod.config import ConfigError, EvalConfig
from dapod.config.load import parse_as, read

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = CONFIGS / "quickstart.toml"


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configuration.load(QUICKSTART, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_config_parses(path):
    if path.name.startswith("eval_"):
        assert parse_as(EvalConfig, read(path), path.name).as_run(max_prompt_tokens=512)
    else:
        assert configuration.load(path).run.name


def test_aime_is_evaluated_as_in_the_paper():
    config = parse_as(EvalConfig, read(CONFIGS / "eval_aime2024.toml"), "AIME")
    assert config.evaluation.samples == 32
    assert (config.sampling.temperature, config.sampling.top_p) == (1.0, 0.7)
    assert config.sampling.max_response_tokens == 20480
    assert config.data.template.startswith("Solve the following math problem step by step. The ")
    assert config.data.template.endswith('on its own line after "Answer:".')


def test_an_unknown_key_is_refused_with_the_nearest_right_one():
    assert "did you mean algorithm.clip_high?" in refusal("algorithm.clip_hihg=0.3")


def test_an_unknown_section_is_refused_with_the_nearest_right_one():
    assert "did you mean optimiser?" in refusal("optimizer.learning_rate=1e-5")


def test_an_unknown_key_like_no_other_is_refused_with_the_keys_there_are():
    assert "known here: checkpoint_every_steps, ranks" in refusal("trainer.qqq=1")


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(QUICKSTART.read_text().replace("learning_rate = 4e-5", ""))
    with pytest.raises(ConfigError, match=r"optimiser\.learning_rate is missing"):
        configuration.load(path)


def test_a_number_out_of_bounds_is_named_with_its_value():
    assert "run.steps = 0" in refusal("run.steps=0")


def test_a_missing_file_and_broken_toml_are_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the config"):
        configuration.load(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        configuration.load(broken)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("algorithm.prompts_per_update=3", "must be a multiple of"),
        ("algorithm.overlong_cache_tokens=16", "must be smaller than sampling.max_response_tokens"),
        ("algorithm.max_leases_per_step=4", "must be at least algorithm.prompts_per_step"),
        ("trainer.tokens_per_micro_batch=40", "must hold one rollout"),
        ("data.template=no hole", "must contain {prompt}"),
        ("run.name=A b", "run.name"),
        ("novalue", "write it as section.key=value"),
    ],
)
def test_impossible_combinations_say_what_to_change(override, says):
    assert says in refusal(override)


def test_a_group_that_no_message_carries_is_refused():
    assert "lower algorithm.group_size" in refusal(
        "sampling.max_response_tokens=100000",
        "algorithm.group_size=1024",
        "trainer.tokens_per_micro_batch=200000",
    )


def test_overrides_take_toml_values_and_bare_words():
    config = configuration.load(
        QUICKSTART, ["optimiser.learning_rate=1e-6", "data.verifier=dapo_math"]
    )
    assert config.optimiser.learning_rate == 1e-6
    assert config.data.verifier == "dapo_math"


def test_relative_paths_are_looked_up_beside_the_config_file():
    config = configuration.load(QUICKSTART)
    assert Path(config.data.path) == CONFIGS / "one_digit_arithmetic.jsonl"


@pytest.mark.parametrize("override", ["run.steps=40", "trainer.ranks=2", "rollout.threads=1"])
def test_length_and_size_of_machine_leave_the_digest_alone(override):
    assert configuration.load(QUICKSTART, [override]).digest() == digest()


@pytest.mark.parametrize(
    "override", ["run.seed=1", "algorithm.clip_high=0.3", "optimiser.learning_rate=1e-6"]
)
def test_what_changes_learning_changes_the_digest(override):
    assert configuration.load(QUICKSTART, [override]).digest() != digest()


def digest() -> str:
    return configuration.load(QUICKSTART).digest()
