"""A Valkey with users, and TLS in front of it, as a Redis that others run would have.

The server that the tests start is built without TLS. So a proxy ends it: real handshakes and real
certificates on loopback, and the server's own bytes behind them.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from dapod.cli import valkey
from dapod.cli.ports import free_ports

HOST = "127.0.0.1"
PASSWORD = "k9/Zc#mQ@2x"
"""With characters that a URL must write otherwise."""
_BYTES = 1 << 16


class GuardedValkey:
    """A server as a run starts it, with a password for everybody and a user of its own for dapod.

    It can be killed and started again on its data.
    """

    def __init__(self, folder: Path, rights: str) -> None:
        (self.port,) = free_ports(1)
        self._command = [
            *valkey.command(self.port, folder),
            *("--requirepass", PASSWORD),
            *("--user", *f"dapod on >{PASSWORD} {rights}".split()),
        ]

    def start(self) -> None:
        """Returns once it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        client = redis.Redis(port=self.port, password=PASSWORD)
        deadline = time.monotonic() + 20
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "valkey does not answer"
                time.sleep(0.02)
        client.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)


@contextmanager
def tls_in_front_of(port: int, own: Path, *, asks_clients: bool = False) -> Iterator[int]:
    """The port where TLS is spoken, with the files of `own` (`certificates.Authority`).

    With `asks_clients`, only to those whose certificate the same authority signed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own / "tls.crt", own / "tls.key")
    if asks_clients:
        context.load_verify_locations(own / "ca.crt")
        context.verify_mode = ssl.CERT_REQUIRED
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tls")
    thread.start()
    try:
        listening = asyncio.run_coroutine_threadsafe(_listen(port, context), loop).result(10)
        yield listening.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(_end(listening), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _listen(port: int, context: ssl.SSLContext) -> asyncio.Server:
    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection(HOST, port)
        except OSError:  # the server is away: so is what stands before it
            writer.transport.abort()
            return
        ways = (_copy(reader, to_writer), _copy(to_reader, writer))
        await asyncio.gather(*ways)

    return await asyncio.start_server(pass_on, HOST, 0, ssl=context)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_BYTES):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


async def _end(listening: asyncio.Server) -> None:
    """And every connection that is still open."""
    listening.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
