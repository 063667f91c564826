"""A Valkey with users, and TLS in front of it, as a Redis that others run would have.

The server that the tests start is built without TLS. So a proxy ends it: real handshakes and real
certificates on loopback, and the server's own bytes behind them.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dapod.cli import valkey
from dapod.cli.ports import free_ports

HOST = "127.0.0.1"
PASSWORD = "k9/Zc#mQ@2x"
"""With characters that a URL must write otherwise."""
_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A certificate and its key, and for an authority the means to sign others."""

    certificate: Path
    key: Path
    made: x509.Certificate
    private: ec.EllipticCurvePrivateKey


def authority(folder: Path, name: str) -> Signed:
    """Signs itself."""
    return _sign(folder, name, None)


def certificate(folder: Path, name: str, by: Signed) -> Signed:
    """For the address of loopback."""
    return _sign(folder, name, by)


def _sign(folder: Path, name: str, by: Signed | None) -> Signed:
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.made.subject if by else subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
    )
    if by:
        address = x509.IPAddress(ipaddress.ip_address(HOST))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    made = builder.sign(by.private if by else private, hashes.SHA256())
    signed = Signed(
        certificate=folder / f"{name}.crt", key=folder / f"{name}.key", made=made, private=private
    )
    signed.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    signed.key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return signed


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
def tls_in_front_of(port: int, own: Signed, clients: Signed | None = None) -> Iterator[int]:
    """The port where TLS is spoken; with `clients`, only to those whose certificate that one
    signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)
    if clients:
        context.load_verify_locations(clients.certificate)
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
