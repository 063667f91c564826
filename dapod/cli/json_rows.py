"""A file of JSON lines that the trainer adds to, and cuts back after a crash, as the runner follows
it."""

import json
from pathlib import Path
from typing import Any

Stamp = tuple[int, int, int]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All whole lines; one that is just being written is left for the next time."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


def stamp(file: Path) -> Stamp | None:
    """Another one means that the file has changed; None when it is not there."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
