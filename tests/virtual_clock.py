"""A clock for what waits: seconds pass when the test says so."""


class Clock:
    """Called as `time.monotonic` is."""

    now = 0.0

    def __call__(self) -> float:
        return self.now
