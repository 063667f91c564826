"""What both programs of this service begin with: the engine to start, the signal to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from dapod.service import Service
from services.rollout import settings
from services.rollout.vllm_engine import VllmEngine


def make_engine(service: Service) -> VllmEngine:
    """vLLM, started by the first policy that is loaded."""
    return VllmEngine(
        lambda directory: settings.engine_arguments(
            service.config,
            model=directory,
            worker_id=service.environment.worker_id,
            cpu=settings.is_cpu_build(),
        )
    )


def as_event(stop: threading.Event) -> asyncio.Event:
    """The signal handler's event, for the event loop."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def pass_on() -> None:
        stop.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the service ended by itself
            loop.call_soon_threadsafe(event.set)

    threading.Thread(target=pass_on, name="stop", daemon=True).start()
    return event
