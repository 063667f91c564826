"""The real engine: vLLM's AsyncLLM, whose core runs in a process of its own.

A change-over (design, one group's way, step 8) never restarts it: let the groups in hand finish
(vLLM takes each rollout of a group as a request of its own, and its pause would keep those that
have not begun for the new weights), pause, reload the weights in place, set the version label,
reset the prefix cache and check that it says True (with requests running it only warns, and old
keys would meet new weights: vllm#46125), resume. vLLM labels every token with the version that
sampled it; the policy spans are taken from there, not from what we believe is loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dapod.types import FinishReason, PolicySpan, PolicyVersion, Rollout
from services.rollout.engine import (
    EngineFailed,
    EngineNotReady,
    Output,
    RequestRefused,
    SamplingFailed,
    SamplingRequest,
)
from services.rollout.policies import VerifiedPolicy
from services.rollout.progress import EngineProgress

START_SECONDS = 900.0
LOAD_SECONDS = 600.0
"""Deadline of each step of a change-over; reading weights from slow storage is the longest."""
STOP_SECONDS = 5.0
STALL_SECONDS = 900.0
"""An engine that has requests and takes no step for so long never will: a step takes milliseconds,
or seconds where many long prompts come at once."""

log = logging.getLogger("dapod.rollout")


class VllmEngine:
    """`arguments(directory)` gives AsyncEngineArgs' arguments for the first version's files."""

    def __init__(
        self,
        arguments: Callable[[Path], dict[str, Any]],
        *,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._arguments = arguments
        self._stall_seconds = stall_seconds
        self._progress = EngineProgress()
        self._llm: Any = None
        self._loaded: PolicyVersion | None = None
        self._ready = False
        self._failure = ""
        self._stopping = False
        self._starting = False
        self._imported: asyncio.Future[None] | None = None
        self._labels: dict[str, PolicyVersion] = {}
        self._sampling = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def loaded(self) -> PolicyVersion | None:
        return self._loaded

    @property
    def ready(self) -> bool:
        return self._ready

    def check(self) -> None:
        if not self._failure and self._llm is not None and self._llm.errored:
            self._fail("the engine's process died")
        if self._failure:
            raise EngineFailed(self._failure)

    async def import_vllm(self) -> None:
        """Takes seconds; called early, it is over by the time there is a policy to load."""
        if self._imported is None:
            self._imported = asyncio.ensure_future(in_thread(_import_vllm))
        await asyncio.shield(self._imported)

    async def load(self, verified: VerifiedPolicy) -> None:
        self.check()
        steps = self._change_over if self._llm is not None else self._start
        self._ready = False
        try:
            await steps(verified)
        except asyncio.CancelledError:
            # The pod stops; the weights may be half of each version.
            self._failure = f"stopped half-way through {verified.policy}"
            raise
        except Exception as error:
            self._fail(f"half-way through {verified.policy}: {type(error).__name__}: {error}")
            raise EngineFailed(self._failure) from error
        self._loaded = verified.policy
        self._ready = True

    async def sample(self, request: SamplingRequest) -> tuple[Output, ...]:
        self.check()
        if not self._ready:
            raise EngineNotReady("no policy is loaded, or one is being loaded")
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            with self._in_hand():
                finished = await self._watched(self._generate(request))
            return tuple(self._output(completion) for completion in finished.outputs)
        except EngineFailed:
            raise
        except EngineDeadError as error:
            self._fail("the engine's process died")
            raise EngineFailed(self._failure) from error
        except VLLMClientError as error:
            raise RequestRefused(str(error)) from error
        except Exception as error:
            raise SamplingFailed(f"{type(error).__name__}: {error}") from error

    async def stop(self) -> None:
        self._stopping, self._ready = True, False
        await self._abandon_start()
        llm, self._llm = self._llm, None
        if llm is None:
            return
        if llm.output_handler is not None:
            llm.output_handler.cancel()  # or it reports the end of the core as an error
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await in_thread(lambda: llm.shutdown(timeout=0))
        _kill_children()  # a wedged core heeds no SIGTERM

    async def _start(self, verified: VerifiedPolicy) -> None:
        await self.import_vllm()
        await self._deadline(START_SECONDS, in_thread(lambda: self._build(verified.directory)))
        await self._deadline(60, self._llm.collective_rpc("hold_lifeline", args=(os.getpid(),)))
        await self._label(verified.policy)

    def _build(self, directory: Path) -> None:
        """Blocks for as long as the engine takes to start; the event loop goes on without it."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._starting = True
        try:
            arguments = AsyncEngineArgs(**self._arguments(directory))
            if not self._stopping:
                self._llm = AsyncLLM.from_engine_args(arguments, stat_loggers=[self._progress])
        finally:
            self._starting = False

    async def _abandon_start(self) -> None:
        """A start cannot be cancelled; without its processes it ends by itself."""
        for _ in range(80):
            if not self._starting:
                return
            _kill_children()
            await asyncio.sleep(0.1)

    async def _change_over(self, verified: VerifiedPolicy) -> None:
        llm, path = self._llm, str(verified.directory)
        await self._deadline(LOAD_SECONDS, self._idle.wait())
        await self._deadline(LOAD_SECONDS, llm.pause_generation(mode="wait"))
        reload = llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        await self._deadline(LOAD_SECONDS, reload)
        await self._label(verified.policy)
        if not await self._deadline(60, llm.reset_prefix_cache()):
            raise RuntimeError("vLLM did not reset its prefix cache")
        await self._deadline(60, llm.resume_generation())

    async def _label(self, policy: PolicyVersion) -> None:
        await self._deadline(60, self._llm.update_weight_version(str(policy)))
        self._labels = {str(known): known for known in (self._loaded, policy) if known}

    @staticmethod
    async def _deadline(seconds: float, step: Coroutine[Any, Any, Any]) -> Any:
        async with asyncio.timeout(seconds):
            return await step

    @contextlib.contextmanager
    def _in_hand(self) -> Iterator[None]:
        """A group that is being sampled; a change-over waits for all of them."""
        self._sampling += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._sampling -= 1
            if not self._sampling:
                self._idle.set()

    async def _watched(self, generating: Coroutine[Any, Any, Any]) -> Any:
        """Waits for as long as the engine takes steps; `EngineFailed` when it does not."""
        request, began = asyncio.ensure_future(generating), time.monotonic()
        try:
            while not (await asyncio.wait({request}, timeout=self._stall_seconds / 10))[0]:
                idle = self._progress.idle_seconds(since=began)
                if idle > self._stall_seconds:
                    self._fail(f"the engine has requests and took no step for {idle:.0f} s")
                    raise EngineFailed(self._failure)
            return request.result()
        finally:
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

    async def _generate(self, request: SamplingRequest) -> Any:
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        parameters = SamplingParams(
            n=request.rollouts,
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_response_tokens,
            logprobs=0,  # of the sampled token alone
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = tokens_input(request.prompt_token_ids.tolist())
        async for output in self._llm.generate(prompt, parameters, request.request_id):
            if output.finished:
                return output
        raise RuntimeError("the engine ended the request without an output")

    def _output(self, completion: Any) -> Output:
        token_ids = list(completion.token_ids)
        pairs = zip(completion.logprobs, token_ids, strict=True)
        rollout = Rollout(
            token_ids=np.asarray(token_ids, dtype=np.int32),
            logprobs=np.asarray([at[token].logprob for at, token in pairs], dtype=np.float32),
            finish_reason=FinishReason(completion.finish_reason),
            policy_spans=self._spans(completion.weight_versions),
        )
        return Output(rollout=rollout, text=completion.text)

    def _spans(self, spans: Sequence[Any]) -> tuple[PolicySpan, ...]:
        return tuple(
            PolicySpan(policy=self._labels[span.version], tokens=span.end - span.start)
            for span in spans
        )

    def _fail(self, reason: str) -> None:
        self._failure, self._ready = reason, False
        log.error("the engine must be restarted: %s", reason)


def _kill_children() -> None:
    for child in multiprocessing.active_children():
        child.kill()


def _import_vllm() -> None:
    import vllm.v1.engine.async_llm  # noqa: F401


async def in_thread(work: Callable[[], None]) -> None:
    """Like `asyncio.to_thread`, in a daemon thread: leaving the event loop does not wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failure: BaseException | None = None
        try:
            work()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=run, name="engine", daemon=True).start()
    await done
