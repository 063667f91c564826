"""The signals that ask a command to stop, noted instead of obeyed at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Signals:
    """Which have come; the first asks for an orderly end, a second one hurries it."""

    def __init__(self, woken: threading.Event) -> None:
        self._woken = woken
        self.numbers: list[int] = []

    @property
    def came(self) -> bool:
        return bool(self.numbers)

    @property
    def hurry(self) -> bool:
        return len(self.numbers) > 1

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catches them meanwhile and sets `woken` for each."""

        def note(number: int, _: FrameType | None) -> None:
            self.numbers.append(number)
            self._woken.set()

        before = {
            number: signal.signal(number, note)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
