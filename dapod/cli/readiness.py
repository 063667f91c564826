"""What each service says of itself at /readyz, asked once a second in a thread.

A service that starts, hangs or is dead does not answer: then its last word is forgotten.
"""

import http.client
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from dapod.cli.ports import HOST

_TIMEOUT_SECONDS = 0.8
_PERIOD_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """One answer of /readyz."""

    ready: bool
    activity: str
    since_unix: float
    asked: float
    """When, on the monotonic clock: an answer older than the process is its predecessor's."""


class ReadinessPoll:
    """The last answer of each service.

    Example: `with ReadinessPoll({"buffer": 8001}) as poll: poll.latest()`.
    """

    def __init__(self, ops_ports: Mapping[str, int]) -> None:
        self._ports = dict(ops_ports)
        self._lock = threading.Lock()
        self._latest: dict[str, Readiness] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="readiness", daemon=True)

    def __enter__(self) -> "ReadinessPoll":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=_TIMEOUT_SECONDS * (len(self._ports) + 1))

    def latest(self) -> dict[str, Readiness]:
        """By service; one that did not answer is missing."""
        with self._lock:
            return dict(self._latest)

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_SECONDS):
            for name, port in self._ports.items():
                answer = ask(port)
                with self._lock:
                    if answer is None:
                        self._latest.pop(name, None)
                    else:
                        self._latest[name] = answer


def ask(port: int) -> Readiness | None:
    """One service's answer, or None."""
    asked = time.monotonic()
    connection = http.client.HTTPConnection(HOST, port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        body = json.loads(connection.getresponse().read())
        return Readiness(
            ready=bool(body["ready"]),
            activity=str(body["activity"]),
            since_unix=float(body["since_unix"]),
            asked=asked,
        )
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()
