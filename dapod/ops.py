"""What people and Prometheus read of a service, over HTTP: /healthz, /readyz, /metrics, /config.

No call between services goes here. The server runs in a thread of its own, so a busy service still
answers.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from dapod.config import ConfigError, RunConfig
from dapod.health import Health


def build_app(
    *, health: Health, config: RunConfig, registries: Sequence[CollectorRegistry]
) -> FastAPI:
    """The four pages of a service."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    def healthz() -> JSONResponse:
        """200 while the process answers and its loop, if it beats, is not stuck; else 503. Never
        depends on another service: a wait beats."""
        overdue = health.heartbeat.overdue_seconds
        if not overdue:
            return JSONResponse({"alive": True})
        body = {"alive": False, "overdue_seconds": overdue, "activity": health.state.activity}
        return JSONResponse(body, status_code=503)

    @app.get("/readyz")
    def readyz() -> JSONResponse:
        """200 when ready, else 503; the body says what the service does or waits for."""
        state = health.state
        body = {"ready": state.ready, "activity": state.activity, "since_unix": state.since_unix}
        return JSONResponse(body, status_code=200 if state.ready else 503)

    @app.get("/metrics")
    def metrics() -> Response:
        """Prometheus text format."""
        body = b"".join(generate_latest(registry) for registry in registries)
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    @app.get("/config")
    def show_config() -> JSONResponse:
        """The run's effective configuration."""
        return JSONResponse(config.model_dump(mode="json"))

    return app


class OpsServer:
    """uvicorn in a thread. `with OpsServer(app, host, port): ...`"""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        self._socket = listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        settings = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="ops", daemon=True
        )

    def __enter__(self) -> OpsServer:
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=5)
        self._socket.close()


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; a port in use is a `ConfigError`."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}): set DAPOD_OPS_PORT to a free port"
        ) from error
    return bound
