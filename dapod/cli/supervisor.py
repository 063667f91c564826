"""Keeps the services of one run alive, within bounds, and ends them all.

    start() ─► poll() again and again ─► stop()

A service that dies is restarted after what is left of its process tree is killed; exit status 2
with a sentence, or too many restarts, end the run. It knows processes, not what they are for: one
of them may end by itself with exit status 0, and what that means is for the caller to say.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dapod.cli.child import Child
from dapod.cli.fleet import ServiceSpec
from dapod.cli.ports import HOST
from dapod.cli.processes import TOKEN, kill_all
from dapod.cli.restarts import MAX_RESTARTS, RestartBudget
from dapod.config import ConfigError

GRACE_SECONDS = 10.0
_STAGE_RATIO = 0.2
_TAIL_LINES = 15


class TooManyRestarts(RuntimeError):
    """A service keeps dying, or never lived; the message ends with the end of its log."""


class Supervisor:
    """All processes of a run. Not thread-safe: one loop owns it."""

    def __init__(
        self,
        specs: Sequence[ServiceSpec],
        *,
        may_end: str,
        token: str,
        run_dir: Path,
        say: Callable[[str], None],
        budget: Callable[[], RestartBudget] = RestartBudget,
    ) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self._may_end = may_end
        self._token = token
        self._logs = run_dir / "logs"
        self._addresses = run_dir / "services.json"
        self._say = say
        self._children: dict[str, Child] = {}
        self._due: dict[str, float] = {}
        self._budgets = {name: budget() for name in self.specs}
        self.ended_well = False
        """Whether the service that may end has, and has not been started again."""

    def start(self, names: Sequence[str]) -> None:
        """Starts services for the first time."""
        for name in names:
            self._start(name)
        self._write_addresses()

    def poll(self) -> None:
        """Restarts what died and whose pause is over.

        Raises `ConfigError` for a user's mistake and `TooManyRestarts`.
        """
        for name, child in list(self._children.items()):
            over = name in self._due or (self.ended_well and name == self._may_end)
            if child.status() is not None and not over:
                self._ended(name, child)
        now = time.monotonic()
        for name in [name for name, due in self._due.items() if due <= now]:
            del self._due[name]
            self._start(name)
            self._write_addresses()

    def ended_too_early(self, reason: str) -> None:
        """Starts the service again that may end, but should not have yet."""
        self.ended_well = False
        self._schedule(self._may_end, reason)

    def pause_left(self, name: str) -> float | None:
        """Seconds until a dead service is started again; None while it runs."""
        return max(0.0, self._due[name] - time.monotonic()) if name in self._due else None

    def started(self, name: str) -> float:
        """When the running process was started, on the monotonic clock."""
        return self._children[name].started

    @property
    def restarts(self) -> dict[str, int]:
        return {name: budget.total for name, budget in self._budgets.items()}

    def stop(
        self, *, grace_seconds: float = GRACE_SECONDS, hurry: Callable[[], bool] = lambda: False
    ) -> bool:
        """Asks everything to stop, in order; kills what has not by the deadline.

        At once when `hurry()` says so. Returns whether nothing is left.
        """
        deadline = time.monotonic() + grace_seconds
        orders = sorted({spec.stop_order for spec in self.specs.values()})
        for order in orders:
            stage = [child for child in self._children.values() if child.spec.stop_order == order]
            for child in stage:
                child.ask_to_stop()
            # The stages after this one need a moment of their own to write down what they hold.
            later = sum(other > order for other in orders)
            until = deadline - later * _STAGE_RATIO * grace_seconds
            while any(child.status() is None for child in stage):
                if time.monotonic() > until or hurry():
                    break
                time.sleep(0.05)
        gone = kill_all({TOKEN: self._token})
        for child in self._children.values():
            child.reap()
        self._addresses.unlink(missing_ok=True)
        return gone

    def _start(self, name: str) -> None:
        log = self._logs / f"{name}.log"
        self._children[name] = Child(self.specs[name], token=self._token, log=log)

    def _ended(self, name: str, child: Child) -> None:
        child.kill_leftovers()
        complaint = child.complaint()
        if complaint is not None:
            raise ConfigError(complaint)
        if child.status() == 0 and name == self._may_end:
            self.ended_well = True
            return
        self._schedule(name, child.how_it_ended())

    def _schedule(self, name: str, reason: str) -> None:
        budget = self._budgets[name]
        pause = budget.grant(time.monotonic())
        if pause is None:
            raise TooManyRestarts(self._end_of_log(name, reason))
        self._due[name] = time.monotonic() + pause
        self._say(
            f"{name} ended ({reason}); "
            f"restart {budget.recent} of at most {MAX_RESTARTS} in {pause:g} s"
        )

    def _end_of_log(self, name: str, reason: str) -> str:
        child = self._children[name]
        lines = "\n".join(f"    {line}" for line in child.last_lines(_TAIL_LINES))
        why = f"{name} ended ({reason}) {self._budgets[name].refusal}"
        return f"{why}; the end of {child.log}:\n{lines}"

    def _write_addresses(self) -> None:
        """services.json: what runs where, for people, scrapers and tests. Never half-written."""
        body = {
            name: {"pid": child.pid} | _addresses(child.spec)
            for name, child in self._children.items()
        }
        beside = self._addresses.with_suffix(".tmp")
        beside.write_text(json.dumps(body, indent=1) + "\n")
        os.replace(beside, self._addresses)


def _addresses(spec: ServiceSpec) -> dict[str, str]:
    addresses = {}
    if spec.ops_port is not None:
        addresses["ops"] = f"http://{HOST}:{spec.ops_port}"
    if spec.grpc_port is not None:
        addresses["grpc"] = f"{HOST}:{spec.grpc_port}"
    return addresses
