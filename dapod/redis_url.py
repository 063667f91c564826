"""The URL of a run's Redis: what of it may be shown, and what can be wrong with it unconnected.

Not a client, and no second opinion on what a URL means: the options are redis-py's, and those of
TLS are read here only for a PING without redis-py (`dapod.cli.redis_ping`) and for sentences that
say what to change.

    redis://[USER][:PASSWORD]@HOST[:6379][/DATABASE]
    rediss://…   the same over TLS; ?ssl_ca_certs=FILE names who signed the server's certificate
    unix://[USER][:PASSWORD]@/PATH
"""

from __future__ import annotations

import re
import ssl
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

SCHEMES = ("redis", "rediss", "unix")
_ENCODE = (
    "in a user or password / is written %2F, ? %3F, # %23, @ %40 and % %25 (percent-encoding), "
    "and a port is a number"
)
_REQUIREMENTS = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_FALSE = ("0", "F", "FALSE", "N", "NO")


def masked(url: str) -> str:
    """The URL as it may be shown: without a password, however the URL is spoilt.

    A password with a character that ought to be percent-encoded ends where the last @ is, not where
    a parser of URLs would see its end.
    """
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    given, at, place = rest.rpartition("@")
    if at:
        user, colon, _ = given.partition(":")
        rest = f"{user}:***@{place}" if colon else f"***@{place}"
    return re.sub(r"(password=)[^&]*", r"\1***", f"{scheme}{separator}{rest}", flags=re.IGNORECASE)


def read(url: str) -> SplitResult:
    """Its parts. Raises `ValueError` for what needs no connection to be seen; names no password."""
    if not url.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        raise ValueError("it must begin with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(f"it cannot be read: {_ENCODE}") from None
    if "@" in url and "@" not in parts.netloc + parts.query:
        raise ValueError(f"it cannot be read: {_ENCODE}")
    if parts.scheme == "rediss":
        tls_context(parts)
    elif any(name.startswith("ssl_") for name in _options(parts)):
        raise ValueError("its ssl_ options are for TLS: if it wants TLS, write rediss://")
    return parts


def credentials(parts: SplitResult) -> tuple[str | None, str | None]:
    """User and password, decoded, each None where there is none; before the host or as options."""
    options = _options(parts)
    user = unquote(parts.username) if parts.username else options.get("username")
    password = unquote(parts.password) if parts.password else options.get("password")
    return user, password


def tls_context(parts: SplitResult) -> ssl.SSLContext:
    """As redis-py makes it of the URL's options. Raises `ValueError` for an unreadable file."""
    options = _options(parts)
    required = options.get("ssl_cert_reqs", "required")
    if required not in _REQUIREMENTS:
        raise ValueError(f"ssl_cert_reqs is {required}: use one of {', '.join(_REQUIREMENTS)}")
    context = ssl.create_default_context()
    verifies = required != "none"
    checks = options.get("ssl_check_hostname", "True").upper() not in _FALSE
    context.check_hostname = verifies and checks
    context.verify_mode = _REQUIREMENTS[required]
    authority = options.get("ssl_ca_certs"), options.get("ssl_ca_path")
    if any(authority):
        try:
            context.load_verify_locations(*authority)
        except OSError as error:
            raise ValueError(
                f"ssl_ca_certs={authority[0] or authority[1]} holds no certificates that can be "
                f"read ({_reason(error)})"
            ) from None
    _load_own_certificate(context, options)
    return context


def _load_own_certificate(context: ssl.SSLContext, options: dict[str, str]) -> None:
    """What a server that wants a certificate of its clients is shown."""
    certificate, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    if not (certificate or key):
        return
    if not certificate:
        raise ValueError("ssl_keyfile needs ssl_certfile beside it")
    try:
        # An empty password rather than None: a locked key would otherwise ask on the terminal.
        context.load_cert_chain(certificate, key, options.get("ssl_password", ""))
    except OSError as error:
        raise ValueError(
            f"ssl_certfile={certificate} and its ssl_keyfile cannot be read ({_reason(error)})"
        ) from None


def refusal(said: str) -> str | None:
    """What to change, by what the server or TLS said; None where waiting may help.

    Example: `refusal("WRONGPASS invalid username-password pair or user is disabled.")`.
    """
    text = said.lower()
    found = (advice for marks, advice in _ADVICE.items() if any(mark in text for mark in marks))
    return next(found, None)


_ADVICE = {
    ("wrongpass", "invalid username", "invalid password"): (
        "the server refuses this user and password: correct them (percent-encoded in the URL)"
    ),
    ("noauth", "authentication required", "client already authenticated"): (
        "the server wants a password: write it into the URL, as in redis://:PASSWORD@HOST:6379/0"
    ),
    ("noperm", "no permissions"): (
        "the server refuses this user PING: give it the rights that docs/kubernetes.md lists"
    ),
    ("hostname mismatch", "ip address mismatch", "not valid for"): (
        "the server's certificate is for another name: use the name that is in it as the host"
    ),
    ("certificate_verify_failed", "certificate verify failed"): (
        "nobody that is trusted here signed the server's certificate: name the file of its "
        "authority with ?ssl_ca_certs=FILE"
    ),
    ("certificate required", "bad certificate", "unknown ca", "handshake failure"): (
        "the server refuses our side of TLS: name a certificate that it trusts with "
        "?ssl_certfile=FILE&ssl_keyfile=FILE"
    ),
    ("wrong_version_number", "wrong version number", "record layer failure", "packet length"): (
        "the server does not speak TLS on this port: write redis://, or use its TLS port"
    ),
}


def _options(parts: SplitResult) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(parts.query).items()}


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
