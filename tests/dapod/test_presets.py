"""Presets: what a file may leave to them, and that anything it says itself wins."""

import tomllib
from pathlib import Path

import pytest

from dapod import config as configuration
from dapod.config import ConfigError, RunConfig
from dapod.config.presets import PRESETS
from dapod.config.sections import Algorithm

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"
SIZES = ("group_size", "prompts_per_step", "prompts_per_update", "max_leases_per_step")


def load(*overrides: str) -> RunConfig:
    return configuration.load(QUICKSTART, overrides)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_every_key_of_the_algorithm_that_is_neither_size_nor_default(name):
    required = {key for key, field in Algorithm.model_fields.items() if field.is_required()}
    given = {key.partition(".")[2] for key in PRESETS[name] if key.startswith("algorithm.")}
    assert given == required - set(SIZES)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_a_run_uses_and_where_it_is_from(name):
    raw = tomllib.loads(QUICKSTART.read_text())
    del raw["optimiser"]["warmup_steps"]
    raw["algorithm"]["preset"] = name
    config = configuration.parse(raw, "test")
    for key, setting in PRESETS[name].items():
        section, _, field = key.partition(".")
        assert getattr(getattr(config, section), field) == setting.value
        assert setting.source


def test_without_a_name_the_preset_is_dapo_of_the_paper():
    algorithm = load().algorithm
    assert algorithm.preset == "dapo"
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.dual_clip) == (0.2, 0.28, 0.0)
    assert (algorithm.loss_normaliser, algorithm.advantage_scale) == ("prompt", "std")
    assert (algorithm.kl_coefficient, algorithm.dynamic_sampling) == (0.0, True)


def test_the_recipe_of_verl_differs_where_it_is_known_to():
    paper, recipe = PRESETS["dapo"], PRESETS["dapo_verl"]
    differs = {key for key in recipe if key not in paper or recipe[key].value != paper[key].value}
    assert differs == {
        "algorithm.dual_clip",
        "algorithm.loss_normaliser",
        "optimiser.warmup_steps",
        "optimiser.weight_decay",
        "optimiser.gradient_clip",
    }


def test_the_file_and_set_win_over_the_preset():
    config = load("algorithm.preset=grpo", "algorithm.kl_coefficient=0.04")
    assert config.algorithm.kl_coefficient == 0.04
    assert config.algorithm.clip_high == 0.2
    assert load("algorithm.preset=dapo_verl").optimiser.warmup_steps == 0, "the file says so"


def test_the_quickstart_is_what_it_was_before_there_were_presets():
    config = load()
    assert config.optimiser.model_dump() == {
        "learning_rate": 4e-5,
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "gradient_clip": 1.0,
    }
    assert config.algorithm.overlong_filter == "off"


def test_the_digest_goes_by_values_not_by_the_name_of_the_preset():
    paper = {key: setting.value for key, setting in PRESETS["dapo"].items()}
    spelled = [f"{k}={str(v).lower()}" for k, v in paper.items() if k.startswith("algorithm.")]
    assert load("algorithm.preset=grpo", *spelled).digest() == load().digest()
    assert load("algorithm.preset=grpo").digest() != load().digest()


def test_a_bare_name_in_place_of_the_table_is_refused_with_the_way_to_write_it():
    raw = tomllib.loads(QUICKSTART.read_text()) | {"algorithm": "dapo"}
    with pytest.raises(ConfigError, match=r'write \[algorithm\] and preset = "dapo" below it'):
        configuration.parse(raw, "test")
