"""One group's way through a rollout pod: sample, score, submit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import grpc

from dapod.config import ConfigError
from dapod.rpc import status
from dapod.types import Disposition, Group, Verdict
from services.rollout.buffer_client import BufferClient, LeasedPrompt
from services.rollout.engine import Engine, Output, SamplingFailed
from services.rollout.metrics import RolloutMetrics
from services.rollout.reward_client import RewardClient

log = logging.getLogger("dapod.rollout")


class GroupFailed(RuntimeError):
    """This pod cannot finish the group; the lease goes back with the reason."""


class GroupWork:
    """Carries one leased prompt to its submission; keeps nothing between groups."""

    def __init__(
        self,
        *,
        engine: Engine,
        reward: RewardClient,
        buffer: BufferClient,
        metrics: RolloutMetrics,
    ) -> None:
        self._engine = engine
        self._reward = reward
        self._buffer = buffer
        self._metrics = metrics

    async def carry(self, prompt: LeasedPrompt, sampled: Callable[[], None]) -> Disposition:
        """Calls `sampled` once the engine is done.

        Raises `GroupFailed`, or what concerns the process: `EngineFailed`, `ConfigError`.
        """
        started = time.monotonic()
        try:
            outputs = await self._engine.sample(prompt.request)
            self._metrics.count_outputs(outputs)
            sampled()
            verdicts = await self._score(prompt, outputs)
            disposition = await self._buffer.submit(
                prompt.lease_id, _group(prompt, outputs, verdicts)
            )
        except SamplingFailed as error:
            raise GroupFailed(f"sampling failed: {error}") from error
        except grpc.RpcError as error:
            details = error.details()
            raise GroupFailed(f"{status(error).name}: {details}") from error
        except ConfigError:
            raise
        except ValueError as error:
            raise GroupFailed(str(error)) from error
        self._report(prompt, verdicts, disposition, time.monotonic() - started)
        return disposition

    async def _score(self, prompt: LeasedPrompt, outputs: tuple[Output, ...]) -> list[Verdict]:
        with self._metrics.score_seconds.time():
            return await self._reward.score(prompt, outputs)

    def _report(
        self,
        prompt: LeasedPrompt,
        verdicts: list[Verdict],
        disposition: Disposition,
        seconds: float,
    ) -> None:
        self._metrics.group_seconds.observe(seconds)
        log.info(
            "group=%s lease=%s %s: %d of %d correct, %d not judged, %.1f s",
            prompt.group_id,
            prompt.lease_id,
            disposition.value,
            sum(verdict.correct is True for verdict in verdicts),
            len(verdicts),
            sum(verdict.correct is None for verdict in verdicts),
            seconds,
        )


def _group(prompt: LeasedPrompt, outputs: tuple[Output, ...], verdicts: list[Verdict]) -> Group:
    """Token ids and log-probs as sampled (invariant 6), each with its verdict as it came."""
    return Group(
        group_id=prompt.group_id,
        prompt_token_ids=prompt.request.prompt_token_ids,
        rollouts=tuple(
            replace(output.rollout, verdict=verdict)
            for output, verdict in zip(outputs, verdicts, strict=True)
        ),
    )
