"""gRPC as every service uses it: servers, channels, deadlines, health, and patience.

Messages are unary and capped; connections are re-made every few minutes, so new pods behind a
headless Service are found (grpc#12295). Given a `Tls` they are encrypted, and both sides show who
they are. Every call has a deadline. `Patience` repeats a call while the other side is away, and
says so; all of ours may be, for they carry the key that makes them idempotent.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dapod.config import ConfigError
from dapod.renewed import RenewedAioChannel, RenewedChannel
from dapod.tls import Tls

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_CONNECTION_AGE_SECONDS = 300

log = logging.getLogger("dapod.rpc")

_SIZES = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]
_LISTENING = [
    *_SIZES,
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
]
_SERVER_OPTIONS = [
    *_LISTENING,
    ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_SECONDS * 1000),
    ("grpc.max_connection_age_grace_ms", MAX_CONNECTION_AGE_SECONDS * 1000),
]
_CHANNEL_OPTIONS = [
    *_SIZES,
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
]

Reply = TypeVar("Reply")


class Refusal(Exception):
    """A server's answer that is not a reply: a status code and one sentence."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def answering(handler: Callable[..., Reply]) -> Callable[..., Reply]:
    """Decorates a servicer method: `Refusal` and `ValueError` become a status, never an UNKNOWN."""

    @functools.wraps(handler)
    def answer(self: object, request: Any, context: grpc.ServicerContext) -> Reply:
        try:
            return handler(self, request, context)
        except Refusal as refusal:
            _abort(context, refusal.code, str(refusal))
        except ValueError as error:
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))

    return answer


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> NoReturn:
    context.abort(code, message)
    raise AssertionError("abort raises")


class RpcServer:
    """A sync gRPC server with the standard health service.

    `register(server.grpc)` the servicers, then `start()`; `stop()` drains.
    """

    def __init__(self, *, threads: int, tls: Tls | None = None) -> None:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="rpc")
        self.grpc = grpc.server(pool, options=_SERVER_OPTIONS)
        self._tls = tls
        self._health = grpc_health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        self._probed: grpc.Server | None = None
        self.health_port: int | None = None
        """Where health alone is answered, in plaintext; None when nobody asked for it."""

    def start(self, host: str, port: int, health_port: int | None = None) -> int:
        """Listens and serves; returns the port (of use when 0 was asked)."""
        bound = bind(self.grpc, host, port, tls=self._tls)
        if health_port is not None:
            self._probed = self._bind_health(host, health_port)
        self.grpc.start()
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        if self._probed is not None:
            self._probed.start()
        return bound

    def _bind_health(self, host: str, port: int) -> grpc.Server:
        """A second server for the same health: the kubelet's probes show no certificate."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="health")
        probed = grpc.server(pool, options=_LISTENING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, probed)
        self.health_port = bind(probed, host, port, variable="DAPOD_HEALTH_PORT")
        return probed

    def stop(self, grace_seconds: float) -> None:
        """Says NOT_SERVING, lets running calls finish, then stops."""
        self._health.enter_graceful_shutdown()
        self.grpc.stop(grace_seconds).wait(grace_seconds + 1)
        if self._probed is not None:
            self._probed.stop(0).wait(1)


def aio_server() -> grpc.aio.Server:
    """An asyncio server for a service that lives in an event loop (the rollout's).

    It listens on loopback, where there are no other pods to find: its connections are not re-made,
    which would cut off a call that samples for longer than their age and grace.
    """
    return grpc.aio.server(options=_LISTENING)


def bind(
    server: grpc.Server | grpc.aio.Server,
    host: str,
    port: int,
    *,
    tls: Tls | None = None,
    variable: str = "DAPOD_GRPC_PORT",
) -> int:
    """Binds `server`, in plaintext without `tls`; a port in use is a `ConfigError`."""
    address = f"{host}:{port}"
    try:
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, tls.for_servers())
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {address}: the port is in use; set {variable} to a free one"
        ) from error


def channel(address: str, tls: Tls | None = None) -> grpc.Channel:
    """A channel that reconnects by itself and spreads calls over all addresses.

    With `tls` the server's certificate must be for the host that `address` names.
    """
    if tls is None:
        return grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
    return RenewedChannel(
        tls, lambda now: grpc.secure_channel(address, now.for_channels(), _CHANNEL_OPTIONS)
    )


def aio_channel(address: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """The asyncio form of `channel`."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
    return RenewedAioChannel(
        tls, lambda now: grpc.aio.secure_channel(address, now.for_channels(), _CHANNEL_OPTIONS)
    )


_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Repeats an idempotent call while the other side is away or full; every wait is visible.

    Example: `Patience(who="buffer", waiting=health.waiting).call(stub.NextBatch, request)`.
    """

    who: str
    """The other side, for people."""
    waiting: Callable[[str], None]
    """Told what is being waited for, once for each failed attempt."""
    timeout_seconds: float = 30.0
    """Deadline of one attempt."""
    give_up_seconds: float = 600.0
    """After this long without an answer the last error rises."""
    stop: threading.Event | None = None
    """When set, the last error rises at the next failure."""

    def call(self, method: Callable[..., Reply], request: Any) -> Reply:
        """Calls a sync stub method; raises `grpc.RpcError` when it is refused or given up."""
        started = time.monotonic()
        for attempt in itertools.count():
            try:
                return method(request, timeout=self.timeout_seconds)
            except grpc.RpcError as error:
                pause = self._pause(error, started, attempt)
                if self.stop is None:
                    time.sleep(pause)
                else:
                    self.stop.wait(pause)
        raise AssertionError("unreachable")

    async def acall(self, method: Callable[..., Awaitable[Reply]], request: Any) -> Reply:
        """The asyncio form of `call`."""
        started = time.monotonic()
        for attempt in itertools.count():
            try:
                return await method(request, timeout=self.timeout_seconds)
            except grpc.RpcError as error:
                await asyncio.sleep(self._pause(error, started, attempt))
        raise AssertionError("unreachable")

    def _pause(self, error: grpc.RpcError, started: float, attempt: int) -> float:
        """Seconds until the next attempt; raises `error` when there should be none."""
        waited = time.monotonic() - started
        stopping = self.stop is not None and self.stop.is_set()
        if status(error) not in _AWAY or waited > self.give_up_seconds or stopping:
            raise error
        reason = f"waiting for the {self.who}: {status(error).name.lower()}"
        self.waiting(reason)
        log.warning(
            "%s (attempt %d, %.0f s so far): %s", reason, attempt + 1, waited, error.details()
        )
        return float(min(2.0, 0.1 * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0))


def status(error: grpc.RpcError) -> grpc.StatusCode:
    """The status code of a failed call, sync or asyncio."""
    code = error.code()
    assert isinstance(code, grpc.StatusCode)
    return code
