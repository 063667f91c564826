"""Columns, messages, repetitions: the published layouts, and what each mistake is called."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dapod.config import ConfigError, Data
from dapod.dataset import Message, Row, read_data, read_rows
from dapod.dataset.arrow_keys import row_keys
from dapod.dataset.distinct import distinct
from dapod.dataset.parquet import ParquetReader
from dapod.dataset.rows import Repeated
from dapod.key import MAX_KEY_CHARACTERS


def dapo_math(index: int, problem: str = "", answer: str = "") -> dict[str, object]:
    """A row of DAPO-Math-17k and AIME-2024."""
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": problem or f"Solve problem {index}.", "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer or str(index), "style": "rule"},
        "extra_info": {"index": str(index)},
    }


def write(file: Path, rows: list[dict[str, object]], **options: object) -> Path:
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, **options)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def dapo_data(path: Path, **keys: object) -> Data:
    keys = {"answer_column": "reward_model.ground_truth", "verifier": "dapo_math", **keys}
    return Data(path=str(path), **keys)


def refusal(data: Data) -> str:
    with pytest.raises(ConfigError) as caught:
        read_rows(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["dapo.parquet", "dapo.jsonl"])
def test_the_layout_of_dapo_math_is_read_and_its_repetitions_fall_together(tmp_path, name):
    rows = [dapo_math(index) for index in range(30)] * 10
    data_set = read_data(dapo_data(write(tmp_path / name, rows)))
    assert [row.message for row in data_set.rows] == [f"Solve problem {n}." for n in range(30)]
    assert [row.answer for row in data_set.rows] == [str(n) for n in range(30)]
    assert str(data_set.counts) == "300 rows read, 270 repeated, 30 kept"
    assert data_set.origin == str(tmp_path / name)


def test_the_layout_of_gsm8k_is_read_whole_and_the_verifier_finds_the_number(tmp_path):
    row = {"question": "How many clips?", "answer": "48/2 = <<48/2=24>>24\n#### 72"}
    data = Data(
        path=str(write(tmp_path / "train.jsonl", [row])),
        prompt_column="question",
        template="{prompt}\nThink.",
        verifier="gsm8k",
    )
    (read,) = read_rows(data)
    assert read == Row(
        messages=(Message(role="user", content="How many clips?\nThink."),), answer=row["answer"]
    )


def test_a_conversation_keeps_its_turns_and_the_template_is_for_the_last(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    file = write(tmp_path / "chat.jsonl", [{"prompt": turns, "answer": 4}])
    data = Data(path=str(file), template="{prompt} Now.", verifier="integer")
    (row,) = read_rows(data)
    assert [(turn.role, turn.content) for turn in row.messages] == [
        ("system", "Be brief."),
        ("user", "2 + 2? Now."),
    ]
    assert (row.message, row.answer) == ("2 + 2? Now.", "4")
    assert "several messages, which data.chat = false cannot join" in refusal(
        data.model_copy(update={"chat": False})
    )


def test_of_contradicting_rows_the_first_is_kept_and_the_first_pair_named(tmp_path):
    rows = [dapo_math(1), dapo_math(2), dapo_math(1, answer="7"), dapo_math(2, answer="8")]
    file = write(tmp_path / "a.parquet", rows)
    data_set = read_data(dapo_data(file))
    assert [row.answer for row in data_set.rows] == ["1", "2"]
    assert str(data_set.counts) == (
        "4 rows read, 2 dropped for another answer to the same prompt "
        f"(first: {file} row 3 against {file} row 1), 2 kept"
    )


def test_a_directory_of_parquet_is_one_data_set_in_the_order_of_names(tmp_path):
    write(tmp_path / "b.parquet", [dapo_math(1), dapo_math(2)])
    write(tmp_path / "a.parquet", [dapo_math(3), dapo_math(1)])
    (tmp_path / "README.md").write_text("no rows")
    data_set = read_data(dapo_data(tmp_path))
    assert [row.answer for row in data_set.rows] == ["3", "1", "2"]
    assert data_set.counts.repeated == 1
    assert data_set.rows[2].place == f"{tmp_path}/b.parquet row 2"


def test_of_parquet_only_the_columns_of_the_layout_become_objects(tmp_path):
    file = write(tmp_path / "a.parquet", [dapo_math(n % 5) for n in range(50)], row_group_size=7)
    given = list(ParquetReader(dapo_data(file)).read(file))
    rows = [row for row in given if not isinstance(row, Repeated)]
    assert [set(row.values) for row in rows] == [{"prompt", "reward_model"}] * 5
    assert rows[0].values["reward_model"] == {"ground_truth": "0"}
    assert sum(row.rows for row in given if isinstance(row, Repeated)) == 45


def test_a_column_whose_name_has_a_dot_comes_before_a_nested_one(tmp_path):
    row = {"prompt": "2 + 2?", "key.value": "4", "key": {"value": "5"}}
    data = Data(
        path=str(write(tmp_path / "a.jsonl", [row])), answer_column="key.value", verifier="integer"
    )
    assert read_rows(data)[0].answer == "4"


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "2\u2028+ 2?", "answer": "4"}\n\n', encoding="utf-8")
    assert read_rows(Data(path=str(file), verifier="integer"))[0].message == "2\u2028+ 2?"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": None, "answer": "1"}, "'prompt' is missing, not text or a number"),
        ({"prompt": {"a": 1}, "answer": "1"}, "'prompt' is a dict, not text or a number"),
        ({"prompt": " ", "answer": "1"}, "'prompt' is empty"),
        ({"prompt": "\ud83d", "answer": "1"}, "'prompt' holds half a surrogate pair"),
        ({"prompt": "x", "answer": "\ud83d"}, "'answer' holds half a surrogate pair"),
        ({"prompt": "x", "answer": ["1"]}, "'answer' is a list, not text or a number"),
        ({"prompt": "x", "answer": True}, "'answer' is a bool, not text or a number"),
        (
            {"prompt": "x", "answer": float("nan")},
            "'answer' is nan, not a number that can",
        ),
        ({"prompt": "x", "answer": float("-inf")}, "'answer' is -inf, not a number"),
        (
            {"prompt": "x", "answer": "1" * (MAX_KEY_CHARACTERS + 1)},
            "'answer' has 100001 characters; a verifier takes 100000 at most",
        ),
        ({"prompt": ["x"], "answer": "1"}, "is a list, but not of {role, content}"),
        ({"prompt": [], "answer": "1"}, "no message of the user at its end"),
        (
            {"prompt": [{"role": "assistant", "content": "x"}], "answer": "1"},
            "no message of the user at its end",
        ),
        (
            {"prompt": [{"role": "human", "content": "x"}], "answer": "1"},
            "has the role 'human', not one of ('system', 'user', 'assistant')",
        ),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_place(tmp_path, row, says):
    file = write(tmp_path / "a.jsonl", [{"prompt": "fine", "answer": "1"}, row])
    sentence = refusal(Data(path=str(file), verifier="integer"))
    assert sentence.startswith("data.") and f"{file} line 2: " in sentence
    assert says in sentence


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_numbers_are_keys_as_people_write_them(tmp_path, name):
    answers = [34.0, -2.0, 0.5, 1e15]
    rows = [{"prompt": f"p{n}", "answer": answer} for n, answer in enumerate(answers)]
    data = Data(path=str(write(tmp_path / name, rows)), verifier="integer")
    assert [row.answer for row in read_rows(data)] == ["34", "-2", "0.5", "1000000000000000"]


def test_the_longest_key_is_a_key_and_a_prompt_may_be_longer(tmp_path):
    row = {"prompt": "p" * (MAX_KEY_CHARACTERS + 1), "answer": "1" * MAX_KEY_CHARACTERS}
    data = Data(path=str(write(tmp_path / "a.jsonl", [row])), verifier="integer")
    assert len(read_rows(data)[0].answer) == MAX_KEY_CHARACTERS


def test_a_missing_column_is_answered_with_those_that_are_there(tmp_path):
    file = write(tmp_path / "a.parquet", [dapo_math(1)])
    sentence = refusal(dapo_data(file, answer_column="reward_model.key"))
    assert sentence.startswith(f"data.answer_column: {file} has no column 'reward_model.key'")
    assert "'prompt', 'ability', 'reward_model.ground_truth', 'reward_model.style'" in sentence
    lines = write(tmp_path / "a.jsonl", [dapo_math(1)])
    assert "line 1 has no column 'question' (its columns: 'data_source', 'prompt'" in refusal(
        dapo_data(lines, prompt_column="question")
    )


def test_files_that_hold_no_rows_say_so(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    assert "broken.parquet is not a parquet file: " in refusal(
        dapo_data(tmp_path / "broken.parquet")
    )
    assert "cannot read" in refusal(dapo_data(tmp_path / "none.parquet"))
    (tmp_path / "rows.csv").write_text("prompt,answer\n")
    assert "neither .jsonl, .json (JSON lines) nor .parquet" in refusal(
        dapo_data(tmp_path / "rows.csv")
    )
    (tmp_path / "empty").mkdir()
    assert "holds no .parquet files" in refusal(dapo_data(tmp_path / "empty"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    assert "latin.jsonl is not UTF-8" in refusal(dapo_data(tmp_path / "latin.jsonl"))
    schema = pyarrow.Table.from_pylist([dapo_math(1)]).slice(0, 0)
    pyarrow.parquet.write_table(schema, tmp_path / "zero.parquet")
    assert "zero.parquet holds no rows" in refusal(dapo_data(tmp_path / "zero.parquet"))


TEXTS = st.text(st.sampled_from("ab "), max_size=2)
RAW = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.fixed_dictionaries({"content": TEXTS, "role": TEXTS}), max_size=2),
        "key": st.fixed_dictionaries({"ground_truth": st.none() | TEXTS, "n": st.integers(0, 2)}),
    }
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(RAW, min_size=1, max_size=12), cut=st.integers(0, 3))
def test_arrows_keys_are_equal_exactly_where_rows_are(rows, cut):
    schema = pyarrow.schema(
        {
            "prompt": pyarrow.list_(
                pyarrow.struct({"content": pyarrow.string(), "role": pyarrow.string()})
            ),
            "key": pyarrow.struct({"ground_truth": pyarrow.string(), "n": pyarrow.int64()}),
        }
    )
    batch = pyarrow.RecordBatch.from_pylist(rows, schema).slice(cut)
    rows = rows[cut:]
    keys = row_keys(batch)
    for one, key in zip(rows, keys, strict=True):
        assert (key is None) == (one["key"]["ground_truth"] is None)
        for other, its_key in zip(rows, keys, strict=True):
            if key is not None:
                assert (key == its_key) == (one == other)


ROWS = st.builds(
    lambda text, answer: Row(messages=(Message(role="user", content=text),), answer=answer),
    st.sampled_from("abc"),
    st.sampled_from("12"),
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROWS, max_size=20))
def test_every_row_is_counted_once_and_every_prompt_kept_once(rows):
    kept, counts = distinct(rows)
    assert counts.read == len(rows) and counts.kept == len(kept)
    assert [row.message for row in kept] == list(dict.fromkeys(row.message for row in rows))
    answers = {row.message: row.answer for row in reversed(rows)}
    assert {row.message: row.answer for row in kept} == answers
    assert counts.repeated == sum(answers[row.message] == row.answer for row in rows) - len(kept)
