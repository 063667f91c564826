"""The config refuses what cannot work, in one sentence that says what to change."""

from pathlib import Path

import pytest

from dapod import config as configuration
from dapod.config import ConfigError, EvalConfig
from dapod.config.load import parse_as, read
from dapod.config.source import HubSource

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
    assert (config.data.path, config.data.verifier) == (
        "hub:BytedTsinghua-SIA/AIME-2024",
        "dapo_math",
    )


def test_an_unknown_key_is_refused_with_the_nearest_right_one():
    assert "did you mean algorithm.clip_high?" in refusal("algorithm.clip_hihg=0.3")


def test_an_unknown_section_is_refused_with_the_nearest_right_one():
    assert "did you mean optimiser?" in refusal("optimizer.learning_rate=1e-5")


def test_an_unknown_key_like_no_other_is_refused_with_the_keys_there_are():
    assert "known here: checkpoint_every_steps, gradient_checkpointing" in refusal("trainer.qqq=1")


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(QUICKSTART.read_text().replace("learning_rate = 4e-5", ""))
    with pytest.raises(ConfigError, match=r"optimiser\.learning_rate is missing"):
        configuration.load(path)


def test_a_number_out_of_bounds_is_named_with_its_value():
    assert "run.steps = 0" in refusal("run.steps=0")


@pytest.mark.parametrize(
    "key",
    [
        *("reward.deadline_seconds", "buffer.lease_seconds", "rollout.memory_gib"),
        *("optimiser.learning_rate", "optimiser.weight_decay", "optimiser.gradient_clip"),
        *("algorithm.clip_high", "algorithm.dual_clip", "algorithm.kl_coefficient"),
        *("algorithm.importance_weight_cap", "sampling.temperature"),
    ],
)
@pytest.mark.parametrize("number", ["inf", "nan"])
def test_no_setting_may_be_infinite_or_no_number(key, number):
    assert f"{key} = {number}: input should be a finite number" in refusal(f"{key}={number}")


def test_a_verifiers_deadline_fits_twice_into_a_score_call():
    assert "reward.deadline_seconds = 281: input should be less than or equal to 280" in refusal(
        "reward.deadline_seconds=281"
    )
    config = configuration.load(QUICKSTART, ["reward.deadline_seconds=280"])
    assert config.reward.deadline_seconds == 280


def test_a_missing_file_and_broken_toml_are_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the config"):
        configuration.load(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        configuration.load(broken)


def test_a_file_that_is_not_utf_8_is_named_with_its_line(tmp_path):
    file = tmp_path / "latin1.toml"
    file.write_bytes('[run]\n# Größe\nname = "x"\n'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin1\.toml line 2 is not UTF-8: save the file as"):
        configuration.load(file)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("algorithm.prompts_per_update=3", "must be a multiple of"),
        ("algorithm.overlong_cache_tokens=16", "must be smaller than sampling.max_response_tokens"),
        ("algorithm.max_leases_per_step=4", "must be at least algorithm.prompts_per_step"),
        ("trainer.tokens_per_micro_batch=40", "must hold one rollout"),
        ("algorithm.dual_clip=0.9", "must be above 1, or 0 to turn it off"),
        ("algorithm.preset=ppo", "choose one of dapo, dapo_verl, grpo, dr_grpo"),
        ('algorithm.preset=["dapo"]', "algorithm.preset = ['dapo']: choose one of dapo, dapo_verl"),
        ("data.template=no hole", "must contain {prompt}"),
        ("data.verifier=nonsense", "data.verifier = 'nonsense' is not a verifier; use one of dapo"),
        ("data.path=hub:nobody", "write it as hub:OWNER/NAME[@REVISION][/FILES]"),
        ("data.path=reasoning_gym:", "write it as reasoning_gym:DATASET"),
        ("data.path=reasoning_gym:chain_sum", "data.size is missing"),
        ("data.size=5", "data.size and data.seed are for data.path = reasoning_gym"),
        ("data.long_prompts=cut", "data.long_prompts = 'cut'"),
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


def test_generated_rows_are_judged_by_their_own_verifier_or_the_users():
    generated = ["data.path=reasoning_gym:chain_sum", "data.size=5"]
    assert 'use "reasoning_gym:chain_sum"' in refusal(*generated)
    for verifier in ("reasoning_gym:chain_sum", "python:mine:right"):
        configuration.load(QUICKSTART, [*generated, f"data.verifier={verifier}"])


def test_a_data_set_that_is_no_file_is_looked_up_nowhere():
    path = "hub:owner/na.me-1@v1.0/a b/train-*.parquet"
    data = configuration.load(QUICKSTART, [f"data.path={path}"]).data
    assert (data.path, data.source) == (
        path,
        HubSource(repository="owner/na.me-1", revision="v1.0", files="a b/train-*.parquet"),
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/here/rows.jsonl", "/there/rows.jsonl", True),
        ("rows.jsonl", "other.jsonl", False),
        ("hub:a/b", "hub:a/b@main", True),
        ("hub:a/b", "hub:a/b@v2", False),
        ("hub:a/b/x.jsonl", "hub:a/c/x.jsonl", False),
    ],
)
def test_the_digest_knows_a_data_set_by_its_name_and_revision(one, other, same):
    digests = {configuration.load(QUICKSTART, [f"data.path={p}"]).digest() for p in (one, other)}
    assert len(digests) == (1 if same else 2)


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


EVALUATION = (
    "evaluation.every_steps=2",
    "evaluation.data.path=one_digit_arithmetic.jsonl",
    "evaluation.data.verifier=integer",
)


def test_a_run_evaluates_nothing_unless_told():
    assert configuration.load(QUICKSTART).evaluation is None


def test_an_evaluation_has_data_of_its_own_beside_the_config_file():
    run = configuration.load(QUICKSTART, [*EVALUATION, "evaluation.max_response_tokens=40"])
    assert run.evaluation is not None
    assert run.evaluation.data.path == str(CONFIGS / "one_digit_arithmetic.jsonl")
    assert (run.evaluation_response_tokens, run.context_tokens, run.tokens_per_rollout) == (
        40,
        104,
        80,
    )
    assert run.verifiers == ["integer"]


def test_an_evaluation_changes_nothing_of_what_is_learned():
    plain = configuration.load(QUICKSTART)
    assert configuration.load(QUICKSTART, EVALUATION).digest() == plain.digest()


def test_an_evaluation_has_the_responses_of_training_unless_told():
    assert configuration.load(QUICKSTART, EVALUATION).evaluation_response_tokens == 16


def test_an_unknown_key_in_a_table_of_a_table_is_refused_with_the_nearest_right_one():
    assert "did you mean evaluation.data.template?" in refusal(
        *EVALUATION, "evaluation.data.templat=x"
    )
    assert "did you mean evaluation.samples?" in refusal(*EVALUATION, "evaluation.sample=2")


def test_an_evaluation_without_data_is_refused():
    assert "evaluation.data is missing" in refusal("evaluation.every_steps=2")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("evaluation.temperature=0", "with evaluation.temperature = 0 all answers are the same"),
        ("evaluation.max_response_tokens=3000000", "lower evaluation.samples or"),
        ("evaluation.top_p=0", "evaluation.top_p = 0"),
        ("evaluation.max_share=1.5", "evaluation.max_share = 1.5"),
        ("evaluation.data.verifier=nonsense", "evaluation.data.verifier = 'nonsense' is not a"),
        ("evaluation.data.template=no hole", "evaluation.data.template must contain {prompt}"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(override, says):
    assert says in refusal(*EVALUATION, "evaluation.samples=4", override)
