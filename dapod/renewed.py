"""Channels that outlive the certificate they began with.

A gRPC channel shows one certificate all its life, and there is no way to give it another
(grpc#15735). So this one is a row of channels: each call looks whether the files have changed, and
goes out on a new channel if they have; the one before is left to the calls that run on it, then
closed.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import grpc

from dapod.tls import Identity, Tls

LAST_CALL_SECONDS = 600.0
"""When a channel of the certificate before is closed: no call between services takes longer."""


class _Method:
    """A method of whatever channel is the current one when it is called."""

    def __init__(self, method: Callable[[], Any]) -> None:
        self._method = method

    def __call__(self, *request: Any, **options: Any) -> Any:
        return self._method()(*request, **options)

    def with_call(self, *request: Any, **options: Any) -> Any:
        return self._method().with_call(*request, **options)

    def future(self, *request: Any, **options: Any) -> Any:
        return self._method().future(*request, **options)


class _Methods(abc.ABC):
    """Stubs are made once; what they hold looks for the current channel at every call."""

    @abc.abstractmethod
    def current(self) -> Any: ...

    def unary_unary(self, *method: Any, **options: Any) -> Any:
        return _Method(lambda: self.current().unary_unary(*method, **options))

    def unary_stream(self, *method: Any, **options: Any) -> Any:
        return _Method(lambda: self.current().unary_stream(*method, **options))

    def stream_unary(self, *method: Any, **options: Any) -> Any:
        return _Method(lambda: self.current().stream_unary(*method, **options))

    def stream_stream(self, *method: Any, **options: Any) -> Any:
        return _Method(lambda: self.current().stream_stream(*method, **options))


class RenewedChannel(_Methods, grpc.Channel):
    """`make` opens a channel with an identity. Any thread may call."""

    def __init__(self, tls: Tls, make: Callable[[Identity], grpc.Channel]) -> None:
        self._tls = tls
        self._make = make
        self._lock = threading.Lock()
        self._identity = tls.identity
        self._channel = make(self._identity)
        self._retired: list[tuple[threading.Timer, grpc.Channel]] = []

    def current(self) -> grpc.Channel:
        """The channel with the certificate of now."""
        with self._lock:
            identity = self._tls.identity
            if identity is not self._identity:
                self._retire(self._channel)
                self._identity, self._channel = identity, self._make(identity)
            return self._channel

    def _retire(self, channel: grpc.Channel) -> None:
        closing = threading.Timer(LAST_CALL_SECONDS, channel.close)
        closing.daemon = True
        closing.start()
        self._retired = [(timer, old) for timer, old in self._retired if timer.is_alive()]
        self._retired.append((closing, channel))

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        self.current().subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        self.current().unsubscribe(callback)

    def close(self) -> None:
        with self._lock:
            for timer, old in self._retired:
                timer.cancel()
                old.close()
            self._channel.close()

    def __enter__(self) -> RenewedChannel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RenewedAioChannel(_Methods, grpc.aio.Channel):
    """The asyncio form of `RenewedChannel`, for one event loop."""

    def __init__(self, tls: Tls, make: Callable[[Identity], grpc.aio.Channel]) -> None:
        self._tls = tls
        self._make = make
        self._identity = tls.identity
        self._channel = make(self._identity)
        self._retired: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    def current(self) -> grpc.aio.Channel:
        """The channel with the certificate of now."""
        identity = self._tls.identity
        if identity is not self._identity:
            closing = asyncio.create_task(self._channel.close(grace=LAST_CALL_SECONDS))
            self._retired[closing] = self._channel
            closing.add_done_callback(self._retired.pop)
            self._identity, self._channel = identity, self._make(identity)
        return self._channel

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current().channel_ready()

    async def close(self, grace: float | None = None) -> None:
        for closing, old in list(self._retired.items()):
            closing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await closing
            await old.close(grace)
        await self._channel.close(grace)

    async def __aenter__(self) -> RenewedAioChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
