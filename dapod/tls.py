"""Mutual TLS between the services: three files in one directory, named as cert-manager writes them.

`tls.crt` and `tls.key` are a service's own, `ca.crt` is whom it believes. Servers ask every caller
for a certificate of that authority; callers check it, too, and that the certificate is for the name
they called. The files are looked at again for every connection (a server's) and every call (a
channel's, `dapod.renewed`), so rotated ones need no restart. It is about gRPC alone: /metrics and
its neighbours, Redis and the trainer's ranks are not encrypted by this.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from dapod.config import ConfigError

CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"

log = logging.getLogger("dapod.tls")

_Stamp = tuple[tuple[Path, int, int], ...]
"""The files behind the names, their times and sizes: another one when any of them changes."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the three files hold, PEM."""

    certificate: bytes
    key: bytes
    authority: bytes

    def for_channels(self) -> grpc.ChannelCredentials:
        """Shows ours, believes the authority's, and checks that it is for the name called."""
        return grpc.ssl_channel_credentials(
            root_certificates=self.authority,
            private_key=self.key,
            certificate_chain=self.certificate,
        )

    def for_servers(self) -> grpc.ServerCertificateConfiguration:
        """Our certificate, and the authority of callers."""
        return grpc.ssl_server_certificate_configuration(
            [(self.key, self.certificate)], root_certificates=self.authority
        )


class Tls:
    """The identity in a directory, as it is now. Any thread may ask.

    Raises `ConfigError` at the start when the files cannot be used. Later such files are a warning,
    and what was read last stays: a mistake in a rotation stops nobody before the old ones expire.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.RLock()
        self._stamp = self._look()
        self._identity = self._read()

    @property
    def identity(self) -> Identity:
        """Read again if a file has changed; the same object if none has."""
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._identity = self._read()
                    log.info("took up the new certificate in %s", self._directory)
                except ConfigError as error:
                    log.warning("keeping the certificate read before: %s", error)
            return self._identity

    def for_servers(self) -> grpc.ServerCredentials:
        """For one server: callers must show a certificate, and rotated files are taken up."""
        seen = self.identity

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal seen
            with self._lock:  # of two connections at once, the later must not bring the old back
                now = self.identity
                if now is seen:
                    return None  # no change
                seen = now
                return now.for_servers()

        return grpc.dynamic_ssl_server_credentials(
            seen.for_servers(),
            renewed,  # type: ignore[arg-type]  # the stubs know of no None
            require_client_authentication=True,
        )

    def _look(self) -> _Stamp:
        return tuple(_stat(self._directory / name) for name in (CERTIFICATE, KEY, AUTHORITY))

    def _read(self) -> Identity:
        identity = Identity(
            certificate=self._bytes(CERTIFICATE),
            key=self._bytes(KEY),
            authority=self._bytes(AUTHORITY),
        )
        self._check()
        return identity

    def _bytes(self, name: str) -> bytes:
        try:
            return (self._directory / name).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"DAPOD_TLS_DIR={self._directory}: cannot read {name} ({error.strerror}): it must"
                f" hold {CERTIFICATE}, {KEY} and {AUTHORITY}, readable for user {os.getuid()}"
            ) from error

    def _check(self) -> None:
        """gRPC takes files that do not fit each other and fails at every connection instead."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate, key, authority = (
            self._directory / name for name in (CERTIFICATE, KEY, AUTHORITY)
        )
        try:
            # A password, or OpenSSL would ask the terminal for that of an encrypted key.
            context.load_cert_chain(certificate, key, password="-")
        except OSError as error:
            raise ConfigError(
                f"DAPOD_TLS_DIR={self._directory}: {KEY} does not open with {CERTIFICATE}"
                f" ({_reason(error)}): put a PEM certificate and its own key there, unencrypted"
            ) from error
        try:
            context.load_verify_locations(authority)
        except OSError as error:
            raise ConfigError(
                f"DAPOD_TLS_DIR={self._directory}: {AUTHORITY} holds no certificate"
                f" ({_reason(error)}): put the PEM certificate there that signed the services' own"
            ) from error


def _stat(path: Path) -> tuple[Path, int, int]:
    """Behind Kubernetes' names are links into a folder that is replaced whole, so: resolved."""
    try:
        stat = path.stat()
    except OSError:
        return path, 0, 0
    return path.resolve(), stat.st_mtime_ns, stat.st_size


def _reason(error: OSError) -> str:
    """`KEY_VALUES_MISMATCH` and the like where OpenSSL gives one."""
    return getattr(error, "reason", None) or str(error)
