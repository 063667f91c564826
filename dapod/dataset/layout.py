"""The columns of a data set that make a row: which they are, and what they may hold.

A name with dots leads into dicts: `reward_model.ground_truth`. A column of just that name comes
first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dapod.config import ConfigError, Data
from dapod.dataset.rows import Message, RawRow, Row
from dapod.key import MAX_KEY_CHARACTERS

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Makes rows of what was read, as the config says."""

    data: Data

    def row(self, raw: RawRow) -> Row:
        """Raises `ConfigError` naming the place, the column and what is wrong with it."""
        prompt = self._column(raw, "prompt_column")
        answer = self._column(raw, "answer_column")
        return Row(
            messages=self._messages(prompt, raw.place),
            answer=self._key(answer, raw.place),
            place=raw.place,
        )

    def _column(self, raw: RawRow, key: str) -> Any:
        name = getattr(self.data, key)
        try:
            return find(raw.values, name)
        except KeyError:
            raise missing(key, name, raw.place, columns(raw.values)) from None

    def _key(self, value: object, place: str) -> str:
        text = self._text(value, "answer_column", place)
        if len(text) > MAX_KEY_CHARACTERS:
            long = f"has {len(text)} characters; a verifier takes {MAX_KEY_CHARACTERS} at most"
            raise self._wrong("answer_column", place, long)
        return text

    def _text(self, value: object, key: str, place: str) -> str:
        # A bool is an int to Python, and "True" the answer to nothing.
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise self._wrong(key, place, f"is {_kind(value)}, not text or a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise self._wrong(key, place, f"is {value}, not a number that can be written")
        text = _written(value)
        if not text.strip():
            raise self._wrong(key, place, "is empty")
        if not _is_unicode(text):
            raise self._wrong(key, place, "holds half a surrogate pair, which is no Unicode")
        return text

    def _messages(self, prompt: object, place: str) -> tuple[Message, ...]:
        if not isinstance(prompt, list):
            text = self._text(prompt, "prompt_column", place)
            return (Message(role="user", content=self._templated(text)),)
        messages = [self._message(item, place) for item in prompt]
        if not messages or messages[-1].role != "user":
            raise self._wrong("prompt_column", place, "has no message of the user at its end")
        if len(messages) > 1 and not self.data.chat:
            raise self._wrong(
                "prompt_column", place, "has several messages, which data.chat = false cannot join"
            )
        last = Message(role="user", content=self._templated(messages[-1].content))
        return (*messages[:-1], last)

    def _message(self, item: object, place: str) -> Message:
        if not isinstance(item, Mapping) or not {"role", "content"} <= item.keys():
            raise self._wrong("prompt_column", place, "is a list, but not of {role, content}")
        if item["role"] not in ROLES:
            raise self._wrong(
                "prompt_column", place, f"has the role {item['role']!r}, not one of {ROLES}"
            )
        content = self._text(item["content"], "prompt_column", place)
        return Message(role=item["role"], content=content)

    def _templated(self, text: str) -> str:
        return self.data.template.replace("{prompt}", text)

    def _wrong(self, key: str, place: str, what: str) -> ConfigError:
        return ConfigError(f"data.{key}: {place}: {getattr(self.data, key)!r} {what}")


def find(values: Mapping[str, Any], name: str) -> Any:
    """The value of a column, nested by dots; raises `KeyError`."""
    if name in values:
        return values[name]
    outer, dot, inner = name.partition(".")
    if not dot or not isinstance(values[outer], Mapping):
        raise KeyError(name)
    return find(values[outer], inner)


def columns(values: Mapping[str, Any]) -> list[str]:
    """All names that `find` takes."""
    names = []
    for name, value in values.items():
        nested = columns(value) if isinstance(value, Mapping) else []
        names += [f"{name}.{inner}" for inner in nested] or [name]
    return names


def missing(key: str, name: str, place: str, there: list[str]) -> ConfigError:
    """What is said of a column that is not there."""
    return ConfigError(
        f"data.{key}: {place} has no column {name!r} (its columns: {', '.join(map(repr, there))})"
    )


def _written(value: str | int | float) -> str:
    """A column of integers with one gap is a column of floats to many a tool: 34.0 is 34."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_unicode(text: str) -> bool:
    """JSON's "\\ud800" is a str to Python, and nothing to a tokenizer or a message."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"
