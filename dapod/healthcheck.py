"""Whether this container's service is alive: `python -m dapod.healthcheck`, exit status 0 or 1.

What the images' HEALTHCHECK runs, every half minute, so it imports nothing of ours: a fresh Python
and one request. It asks /healthz, never /readyz: a service that waits for another one is healthy.
"""

from __future__ import annotations

import os
import sys
import urllib.request

SECONDS = 4.0
"""Less than the HEALTHCHECK's own time-out, so that the reason is in its log."""


def ask(port: str) -> None:
    """Returns when the service on this host answers 200; raises `OSError` when it does not."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=SECONDS):
        return


if __name__ == "__main__":
    try:
        ask(os.environ["DAPOD_OPS_PORT"])
    except OSError as error:
        sys.exit(f"dapod: not healthy: {error}")
