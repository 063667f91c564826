"""The Lua scripts as Python calls: one method call, one atomic change of state.

Knows how scripts are called and how Redis fails; nothing about groups. Flow: `call(name, args)` ->
EVALSHA with the run's meta key, the settings with the clock, and the arguments as JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import redis

from dapod.config import Evaluation, RunConfig
from services.buffer.keys import meta_key
from services.buffer.problems import Problems

LUA = Path(__file__).parent / "lua"
SHARED = ("common", "evaluation")
"""Stand before every script, in this order."""
DROPPED = ("submit", "#!lua flags=allow-oom")
"""A group of which only counts are kept frees memory: `submit.lua`, on a full server as well."""


class StoreAway(Exception):
    """Redis does not answer, or not yet: nothing was said about the call, repeat it."""


class StoreForbidden(StoreAway):
    """Redis answers, but its rules let this user not run a command; somebody must change them."""


class StoreFull(Exception):
    """Redis is at maxmemory: the call changed nothing, repeat it once batches have been trained."""


_AWAY = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError)
"""BusyLoadingError is a ConnectionError; read-only is what a replica says in a failover."""


class Scripts:
    """All scripts of `lua/`, by name."""

    def __init__(
        self,
        *,
        client: redis.Redis,
        run_id: str,
        config: RunConfig,
        problems: Problems | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._keys = [meta_key(run_id)]
        self._now = now
        self._settings: dict[str, Any] = {
            "prompts_per_step": config.algorithm.prompts_per_step,
            "prompts_per_update": config.algorithm.prompts_per_update,
            "max_staleness": config.algorithm.max_staleness,
            "dynamic_sampling": config.algorithm.dynamic_sampling,
            "max_leases_per_step": config.algorithm.max_leases_per_step,
            "steps": config.run.steps,
            "lease_ms": round(config.buffer.lease_seconds * 1000),
        }
        if config.evaluation is not None and problems is not None:
            self._settings["evaluation"] = _evaluation(config.evaluation, problems)
        self._scripts = {name: client.register_script(text) for name, text in _texts().items()}
        self._waits_for_aof = True

    def call(self, script: str, args: Mapping[str, Any], *blobs: bytes) -> Any:
        """Runs one script; raises `StoreAway` or `StoreFull`."""
        return _asking(lambda: self._run(script, args, *blobs))

    def call_synced(self, script: str, args: Mapping[str, Any], timeout_ms: int) -> None:
        """Runs one script and waits until the append-only file holds it, where there is one.

        Both on one connection: WAITAOF (Redis 7.2) speaks of the caller's own writes only.
        """
        if not self._waits_for_aof:
            return
        with self._client.pipeline(transaction=False) as pipeline:
            self._run(script, args, client=pipeline)
            pipeline.execute_command("WAITAOF", 1, 0, timeout_ms)
            replies = _asking(lambda: pipeline.execute(raise_on_error=False))
        if isinstance(replies[0], redis.RedisError):
            raise StoreAway(f"Redis did not note the ledger: {replies[0]}")
        # An older server, or no append-only file: the trainer is the only other witness.
        self._waits_for_aof = not isinstance(replies[-1], redis.ResponseError)

    def _run(
        self, script: str, args: Mapping[str, Any], *blobs: bytes, client: redis.Redis | None = None
    ) -> Any:
        settings = json.dumps({**self._settings, "now": round(self._now() * 1000)})
        return self._scripts[script](
            keys=self._keys, args=[settings, json.dumps(args), *blobs], client=client
        )

    def ping(self) -> None:
        """Raises `StoreAway` when Redis does not answer."""
        _asking(self._client.ping)

    def info(self, section: str) -> Mapping[str, Any]:
        """What the server says of itself. Raises `StoreAway`."""
        found: Mapping[str, Any] = _asking(lambda: self._client.info(section))
        return found


def _asking(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except redis.OutOfMemoryError as error:
        raise StoreFull("Redis is full: submissions wait until a batch was trained") from error
    except _AWAY as error:
        raise StoreAway(f"Redis does not answer: {error}") from error
    except redis.ResponseError as error:
        if isinstance(error, redis.exceptions.NoPermissionError) or str(error).startswith("ACL "):
            raise StoreForbidden(f"Redis refuses: {error}") from error
        # What a server says that cannot serve for now: its disk is full, its replicas are gone, or
        # one script keeps it busy (resuming a long run in an emptied Redis takes seconds).
        if str(error).startswith(("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "BUSY ")):
            raise StoreAway(f"Redis cannot serve: {error}") from error
        raise


def _evaluation(wanted: Evaluation, problems: Problems) -> dict[str, Any]:
    """What `evaluation.lua` goes by."""
    return {
        "every_steps": wanted.every_steps,
        "problems": len(problems),
        "digest": problems.digest,
        "max_share": wanted.max_share,
        "deadline_ms": round(wanted.deadline_seconds * 1000),
    }


def _texts() -> dict[str, str]:
    """Each script: its shebang line, the shared part, its body."""
    common = "".join((LUA / f"{name}.lua").read_text() for name in SHARED)
    texts = {}
    for file in sorted(LUA.glob("*.lua")):
        if file.stem not in SHARED:
            shebang, _, body = file.read_text().partition("\n")
            assert shebang.startswith("#!lua"), file
            texts[file.stem] = f"{shebang}\n{common}{body}"
    script, shebang = DROPPED
    _, _, body = texts[script].partition("\n")
    texts[f"{script}_dropped"] = f"{shebang}\n{body}"
    return texts
