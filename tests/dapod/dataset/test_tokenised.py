"""Prompts against the limit: refused or filtered, by name, and counted."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from dapod import config as configuration
from dapod.config import ConfigError, RunConfig
from dapod.dataset.tokenised import TokenisedDataSet, read_tokenised

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.toml"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A word is a token; prompts of 1, 3, 2 and 9 words, the third repeated."""
    model = tmp_path / "model"
    model.mkdir()
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(model / "tokenizer.json"))
    settings = {"chat_template": "{% for m in messages %}{{ m.content }} {% endfor %}"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    rows = [{"question": "w " * n, "answer": "1"} for n in (1, 3, 2, 2, 9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return configuration.load(
        QUICKSTART,
        [f"model.path={model}", f"data.path={tmp_path}/rows.jsonl", "data.template={prompt}"],
    )


def read(config: RunConfig) -> TokenisedDataSet:
    return read_tokenised(
        config.data,
        model=Path(config.model.path),
        max_prompt_tokens=config.sampling.max_prompt_tokens,
    )


def limited(config: RunConfig, limit: int, long_prompts: str) -> RunConfig:
    return config.model_copy(
        update={
            "sampling": config.sampling.model_copy(update={"max_prompt_tokens": limit}),
            "data": config.data.model_copy(update={"long_prompts": long_prompts}),
        }
    )


def test_prompts_within_the_limit_are_all_kept(config):
    tokenised = read(limited(config, 9, "refuse"))
    assert list(map(len, tokenised.token_ids)) == [1, 3, 2, 9]
    assert str(tokenised.data_set.counts) == "5 rows read, 1 repeated, 4 kept"


def test_long_prompts_are_refused_with_their_number_and_the_first_place(config, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read(limited(config, 2, "refuse"))
    assert str(caught.value) == (
        "data.path: 2 of 4 prompts are longer than sampling.max_prompt_tokens = 2 "
        f"(first: {tmp_path}/rows.jsonl line 2; longest: 9 tokens): "
        'raise it to 9, or set data.long_prompts = "filter"'
    )


def test_long_prompts_are_filtered_by_name_and_counted(config):
    tokenised = read(limited(config, 2, "filter"))
    assert list(map(len, tokenised.token_ids)) == [1, 2]
    assert [row.message for row in tokenised.data_set.rows] == ["w ", "w w "]
    assert str(tokenised.data_set.counts) == (
        "5 rows read, 1 repeated, 2 filtered for their length, 2 kept"
    )


def test_a_limit_that_leaves_nothing_is_refused(config, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "w w w", "answer": "1"}')
    with pytest.raises(ConfigError, match=r"^data.long_prompts: 1 of 1 .*: none is left"):
        read(limited(config, 2, "filter"))


def test_a_prompt_without_tokens_and_a_broken_tokenizer_are_named(config, tmp_path):
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"chat_template": ""}')
    with pytest.raises(ConfigError, match=r"rows.jsonl line 1: the prompt has no tokens"):
        read(config)
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"^model.path: .*tokenizer.json is no tokenizer"):
        read(config)
