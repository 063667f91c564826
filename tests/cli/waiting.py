"""Waiting in tests: for a predicate, never for a time."""

import time
from collections.abc import Callable


def wait_until(predicate: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    """Polls; a failure says what was waited for."""
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.02)
