"""The arithmetic of restarts, on a clock of the test's own."""

from dapod.cli.restarts import MAX_RESTARTS, WINDOW_SECONDS, OnceReady, RestartBudget


def test_the_pause_doubles_with_each_recent_restart() -> None:
    budget = RestartBudget()
    assert [budget.grant(now) for now in range(4)] == [0.5, 1.0, 2.0, 4.0]


def test_a_sixth_restart_within_ten_minutes_is_refused() -> None:
    budget = RestartBudget()
    for now in range(MAX_RESTARTS):
        assert budget.grant(float(now)) is not None
    assert budget.grant(WINDOW_SECONDS - 1) is None


def test_old_restarts_are_forgotten_but_stay_counted() -> None:
    budget = RestartBudget()
    for now in range(MAX_RESTARTS):
        budget.grant(float(now))
    assert budget.grant(WINDOW_SECONDS + MAX_RESTARTS) == 0.5
    assert budget.total == MAX_RESTARTS + 1


def test_what_never_was_ready_is_not_started_again() -> None:
    ready: list[bool] = []
    budget = OnceReady(lambda: bool(ready))
    assert budget.grant(0.0) is None and budget.refusal == "before it was ready"
    ready.append(True)
    assert budget.grant(0.0) == 0.5 and "restarts in ten minutes" in budget.refusal
