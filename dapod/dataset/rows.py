"""What readers give and what becomes of it: values by column, and rows with a prompt and a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRow:
    """One row as it was read."""

    place: str
    """Where it stands, for error messages: "rows.jsonl line 3"."""
    values: Mapping[str, Any]
    """Values by column; a column may hold dicts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeated:
    """Rows that a reader has passed over because they repeat earlier ones to the letter."""

    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prompt of the data set."""

    messages: tuple[Message, ...]
    """At least one, the last one the user's with the template applied."""
    answer: str
    place: str = field(default="", compare=False)

    @property
    def message(self) -> str:
        """The user's last message."""
        return self.messages[-1].content
