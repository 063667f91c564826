"""PING to a Redis-protocol server, to find out before anything starts whether it answers.

Not a Redis client (the buffer has one); this package does not import any. Speaks just AUTH and
PING.
"""

import socket
from urllib.parse import SplitResult

from dapod import redis_url
from dapod.config import ConfigError

TIMEOUT_SECONDS = 3.0
_DEFAULT_PORT = 6379


def check(url: str) -> None:
    """Raises `ConfigError` unless the server answers PING within three seconds."""
    shown = f"redis URL {redis_url.masked(url)}"
    try:
        answer = ping(redis_url.read(url))
    except OSError as error:
        said = error.strerror or str(error)
        advice = redis_url.refusal(str(error)) or (
            f"no answer to PING within {TIMEOUT_SECONDS:.0f} s ({said})"
        )
        raise ConfigError(f"{shown}: {advice}") from error
    except ValueError as error:
        raise ConfigError(f"{shown}: {error}") from error
    if not answer:
        raise ConfigError(
            f"{shown}: the server ends the connection at once: if it wants TLS, write rediss://"
        )
    if not answer.startswith("+PONG"):
        advice = redis_url.refusal(answer) or f"the server answered {answer!r} to PING"
        raise ConfigError(f"{shown}: {advice}")


def ping(parts: SplitResult) -> str:
    """The last line the server said. Raises `OSError` when it cannot be reached."""
    user, password = redis_url.credentials(parts)
    with _connect(parts) as connection, connection.makefile("rwb") as stream:
        replies = 1
        if password is not None:
            # With the name always: without, a server that knows no password refuses any.
            stream.write(_command("AUTH", user or "default", password))
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
    try:
        return redis_url.tls_context(parts).wrap_socket(connection, server_hostname=host)
    except OSError:
        connection.close()
        raise


def _command(*words: str) -> bytes:
    encoded = [word.encode() for word in words]
    body = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
    return b"*%d\r\n%s" % (len(words), body)
