"""PING to a Redis-protocol server, to find out before anything starts whether it answers.

Not a Redis client (the buffer has one); this package does not import any. Speaks just AUTH and
PING.
"""

import socket
import ssl
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from dapod.config import ConfigError

TIMEOUT_SECONDS = 3.0
_DEFAULT_PORT = 6379


def masked(url: str) -> str:
    """The URL as it may be shown: without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = parts.username or ""
    return parts._replace(netloc=f"{user}:***@{parts.netloc.rpartition('@')[2]}").geturl()


def check(url: str) -> None:
    """Raises `ConfigError` unless the server answers PING within three seconds."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"the redis URL is not a URL: {error}") from error
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ConfigError(
            f"redis URL {masked(url)}: it must begin with redis://, rediss:// or unix://"
        )
    try:
        answer = ping(parts)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"redis URL {masked(url)}: no answer to PING within {TIMEOUT_SECONDS:.0f} s ({reason})"
        ) from error
    if not answer.startswith("+PONG"):
        raise ConfigError(f"redis URL {masked(url)}: the server answered {answer!r} to PING")


def ping(parts: SplitResult) -> str:
    """The last line the server said. Raises `OSError` when it cannot be reached."""
    with _connect(parts) as connection, connection.makefile("rwb") as stream:
        replies = 1
        if parts.password is not None:
            user = [unquote(parts.username)] if parts.username else []
            stream.write(_command("AUTH", *user, unquote(parts.password)))
            replies += 1
        stream.write(_command("PING"))
        stream.flush()
        lines = [stream.readline().decode(errors="replace").strip() for _ in range(replies)]
    # A refused AUTH says more than the PING after it.
    return next((line for line in lines if line.startswith("-")), lines[-1])


def _connect(parts: SplitResult) -> socket.socket:
    if parts.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(TIMEOUT_SECONDS)
        connection.connect(parts.path)
        return connection
    host = parts.hostname or "localhost"
    connection = socket.create_connection((host, parts.port or _DEFAULT_PORT), TIMEOUT_SECONDS)
    if parts.scheme == "redis":
        return connection
    return _tls_context(parts).wrap_socket(connection, server_hostname=host)


def _tls_context(parts: SplitResult) -> ssl.SSLContext:
    """As redis-py reads the URL: `ssl_ca_certs=FILE` and `ssl_cert_reqs=none`."""
    options = parse_qs(parts.query)
    context = ssl.create_default_context(cafile=next(iter(options.get("ssl_ca_certs", [])), None))
    if options.get("ssl_cert_reqs") == ["none"]:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _command(*words: str) -> bytes:
    encoded = [word.encode() for word in words]
    body = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
    return b"*%d\r\n%s" % (len(words), body)
