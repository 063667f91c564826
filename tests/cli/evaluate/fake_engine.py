"""The program that serves a fixed policy, with the engine double in the place of vLLM.

With FAKE_ENGINE_HOLDS_AT = n it holds every answer from the n-th on back, with
FAKE_ENGINE_FAILS it does not start.
"""

import asyncio
import itertools
import os
import sys

from dapod.service import Service, main
from services.rollout import serve
from services.rollout.engine import Output, SamplingRequest
from tests.rollout.doubles import EngineDouble


class HoldingEngine(EngineDouble):
    def __init__(self) -> None:
        super().__init__([])
        self._numbers = itertools.count()

    async def sample(self, request: SamplingRequest) -> tuple[Output, ...]:
        if next(self._numbers) == int(os.environ.get("FAKE_ENGINE_HOLDS_AT", "-1")):
            self.go.clear()
        return await super().sample(request)


def serve_double(service: Service) -> None:
    if "FAKE_ENGINE_FAILS" in os.environ:
        print("no memory for the model", file=sys.stderr)
        sys.exit(1)
    asyncio.run(serve.answer(service, HoldingEngine()))


if __name__ == "__main__":
    main("rollout", serve_double)
