"""Reaching Redis at the start: patience, rights, version, and whether the run fits in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from dapod import redis_url
from dapod.config import ConfigError, RunConfig
from dapod.redis_url import masked, refusal
from services.buffer.scripts import StoreForbidden

CALL_SECONDS = 10.0
"""Deadline of one call to Redis."""


def connect(
    url: str, *, patience_seconds: float = 10.0, stop: threading.Event | None = None
) -> redis.Redis:
    """A client whose server answers. Raises `ConfigError` when none does in `patience_seconds`,
    and at once for what waiting cannot cure: a password, a certificate.

    No retries inside the client: callers repeat calls, with their idempotency keys.
    """
    try:
        redis_url.read(url)
        client = redis.Redis.from_url(
            url,
            socket_timeout=CALL_SECONDS,
            socket_connect_timeout=5.0,
            retry=Retry(NoBackoff(), 0),
        )
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except TypeError as error:
        raise ConfigError(
            f"DAPOD_REDIS_URL={masked(url)}: it has an option that nobody knows ({error})"
        ) from error
    except ValueError as error:
        raise ConfigError(f"DAPOD_REDIS_URL={masked(url)}: {error}") from error
    _wait(client, url, time.monotonic() + patience_seconds, stop or threading.Event())
    return client


def _wait(client: redis.Redis, url: str, deadline: float, stop: threading.Event) -> None:
    """Valkey may be starting; loading its append-only file may take longer than any patience."""
    while True:
        try:
            client.ping()
            return
        except redis.RedisError as error:
            loading = isinstance(error, redis.BusyLoadingError) or str(error).startswith("BUSY ")
            if loading and not stop.wait(0.1):
                continue
            advice = refusal(str(error))
            if advice:
                raise ConfigError(f"DAPOD_REDIS_URL={masked(url)}: {advice}") from error
            if time.monotonic() > deadline or stop.wait(0.1):
                raise ConfigError(
                    f"DAPOD_REDIS_URL={masked(url)} does not answer ({error}): start a Redis or "
                    f"Valkey server there, or correct the URL{_about_tls(url)}"
                ) from error


def _about_tls(url: str) -> str:
    """A server that speaks TLS and a client that does not (or the reverse) only wait or hang up."""
    about = {"redis": "rediss:// if it wants TLS", "rediss": "redis:// if it speaks no TLS"}
    scheme = url.partition("://")[0]
    return f" ({about[scheme]})" if scheme in about else ""


@contextmanager
def permitted(url: str) -> Iterator[None]:
    """Around the first calls: `ConfigError` when the user of the URL may not run one."""
    try:
        yield
    except (redis.exceptions.NoPermissionError, StoreForbidden) as error:
        raise ConfigError(
            f"DAPOD_REDIS_URL={masked(url)}: {error}: give the user the rights that "
            f"docs/kubernetes.md lists"
        ) from error


def check_version(client: redis.Redis, url: str) -> None:
    """Raises `ConfigError` for a server that cannot run scripts that begin with `#!lua`.

    Valkey says here which Redis it is like.
    """
    version = str(client.info("server").get("redis_version", ""))
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) < 7:
        raise ConfigError(
            f"Redis 7.0 or newer, or Valkey, is needed; DAPOD_REDIS_URL={masked(url)} is {version}"
        )


def check_memory(client: redis.Redis, config: RunConfig) -> None:
    """Raises `ConfigError` unless all payloads that may live at once fit and none is evicted."""
    memory = client.info("memory")
    limit = int(memory.get("maxmemory", 0))
    if not limit:
        return
    policy = memory.get("maxmemory_policy")
    if policy != "noeviction":
        raise ConfigError(
            f"Redis would evict groups (maxmemory-policy {policy}): set maxmemory-policy noeviction"
        )
    need = config.live_payload_steps * config.algorithm.prompts_per_step * config.group_bytes
    if need > limit:
        raise ConfigError(
            f"Redis may hold {limit >> 20} MiB (maxmemory), this run needs up to {_mib(need)} MiB: "
            f"{config.live_payload_steps} steps of {config.algorithm.prompts_per_step} groups of "
            f"{config.group_bytes >> 10} KiB; raise maxmemory or lower "
            f"trainer.checkpoint_every_steps"
        )


def _mib(size: int) -> int:
    return -(-size // 2**20)
