"""Each prompt once: rows with the same messages fall together, and are counted.

The published DAPO-Math-17k repeats its rows about 100 times, AIME-2024 32 times (verl#3065).
A group is prompt × epoch, so a repetition would train a prompt more often and nothing else.

Of rows with the same messages and different answers the first is kept: at most one key is right,
nothing in the data says which, and the published sets have too few of them to refuse the whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from dapod.dataset.counts import Counts
from dapod.dataset.rows import Message, Repeated, Row


def distinct(rows: Iterable[Row | Repeated]) -> tuple[list[Row], Counts]:
    """The first row of each prompt, in order. Holds no more than those."""
    first: dict[tuple[Message, ...], Row] = {}
    read = contradicting = 0
    named = ""
    for row in rows:
        if isinstance(row, Repeated):
            read += row.rows
            continue
        read += 1
        earlier = first.setdefault(row.messages, row)
        if earlier.answer != row.answer:
            contradicting += 1
            named = named or f"{row.place} against {earlier.place}"
    counts = Counts(
        read=read,
        repeated=read - len(first) - contradicting,
        contradicting=contradicting,
        first_contradicting=named,
    )
    return list(first.values()), counts
