"""AsyncLLMEngine: the asynchronous face. It lives in the API process; the core and its model live in another.

One async generator per request. Text is made here, tokens there, so serving never waits for a kernel and a kernel
never waits for a client.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from octavo.checkpoint import Checkpoint, resolve
from octavo.config import EngineConfig, replace
from octavo.engine.channel import Abort, Add, Channel, FromCore, Stepped
from octavo.engine.chat_template import ChatTemplate
from octavo.engine.core import StepOutputs
from octavo.engine.input import InputProcessor, default_sampling
from octavo.engine.output import OutputKind, OutputProcessor
from octavo.engine.supervisor import CoreProcess
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import EngineDead, InvalidRequest, OctavoError
from octavo.metrics import Metrics
from octavo.processes import Failed, Ready
from octavo.request import BeamSearchParams, PromptType, RequestOutput, SamplingParams

logger = logging.getLogger(__name__)

_ENCODE_INLINE = 4096  # characters; longer texts are encoded off the event loop
_QUEUED_REQUESTS = 1024  # may wait in a server that sets no bound of its own
_LONG_CONTEXT = 131072  # tokens; upper end of the metrics' buckets where a model does not name its own


class AsyncLLMEngine:
    """Made by `start`. Every method belongs to the event loop that started it."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint, tokenizer: Tokenizer, core: CoreProcess) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.chat_template = ChatTemplate.for_model(config.model, tokenizer)
        self.default_sampling = default_sampling(config.model, checkpoint)
        self.core = core
        self.metrics = Metrics(
            next(iter(config.model.served_model_name), checkpoint.name),
            longest=checkpoint.config.get("max_position_embeddings") or _LONG_CONTEXT,
        )
        self._channel: Channel | None = None
        self._reader: asyncio.Task[None] | None = None
        self._streams: dict[str, asyncio.Queue[RequestOutput | OctavoError]] = {}
        self._loaded: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._death: OctavoError | None = None

    @classmethod
    async def start(cls, config: EngineConfig) -> AsyncLLMEngine:
        """Find the model and start the core; returns while the core still loads. Raises CheckpointError."""
        if config.scheduler.max_num_queued_reqs is None:
            bounded = replace(config.scheduler, max_num_queued_reqs=_QUEUED_REQUESTS)
            config = replace(config, scheduler=bounded)
        core = CoreProcess(config)  # it imports its libraries while we look for the model
        try:
            checkpoint = await asyncio.to_thread(resolve, config.model)
            tokenizer = await asyncio.to_thread(Tokenizer.from_checkpoint, checkpoint, config.model.tokenizer)
            engine = cls(config, checkpoint, tokenizer, core)
        except BaseException:
            await core.end()
            raise
        engine._channel = await core.open(checkpoint)
        engine._reader = asyncio.create_task(engine._read(engine._channel))
        return engine

    # ------------------------------------------------------------------ state

    @property
    def ready(self) -> bool:
        return self._loaded.done() and self._death is None

    @property
    def dead(self) -> bool:
        return self._death is not None

    async def wait_ready(self) -> None:
        """Until the model is loaded. Raises the core's own error if it could not be."""
        if self._death is not None:
            raise self._death
        await asyncio.shield(self._loaded)

    async def wait_dead(self) -> OctavoError:
        """Until the core is gone; why."""
        assert self._reader is not None
        await asyncio.wait([self._reader])
        return self._death or EngineDead("the engine was shut down")

    @property
    def max_model_len(self) -> int:
        """Known once ready."""
        return self._loaded.result().capacity.max_model_len

    # ------------------------------------------------------------------ requests

    async def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams | BeamSearchParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        output_kind: OutputKind = "cumulative",
    ) -> AsyncIterator[RequestOutput]:
        """Yields outputs as they come: all so far, or with "delta" only what is new. Closing it aborts the request.

        Raises InvalidRequest or ContextTooLong before anything is queued; Overloaded, RequestFailed or EngineDead.
        """
        await self.wait_ready()
        if request_id in self._streams:
            raise InvalidRequest(f"request id {request_id!r} is in use", param="request_id")
        stream = self._streams[request_id] = asyncio.Queue()
        try:
            text, ids = await self.encode(prompt)
            request = self._inputs.request(request_id, ids, sampling_params, priority=priority, cache_salt=cache_salt)
            if self._death is not None:  # while we encoded
                raise self._death
            self._outputs.add(request, text, output_kind)
            self._send(Add(request))
            finished = False
            while not finished:
                news = await stream.get()
                if isinstance(news, OctavoError):
                    raise news
                finished = news.finished
                yield news
        finally:
            del self._streams[request_id]
            if request_id in self._outputs:
                await self.abort(request_id)

    async def encode(self, prompt: PromptType, *, add_special_tokens: bool = True) -> tuple[str | None, list[int]]:
        """The prompt's text, if it has one, and its token ids; long texts are encoded off the event loop.

        Raises InvalidRequest or ContextTooLong.
        """
        await self.wait_ready()
        if isinstance(prompt, str) and len(prompt) > _ENCODE_INLINE:
            return await asyncio.to_thread(self._inputs.encode, prompt, add_special_tokens)
        return self._inputs.encode(prompt, add_special_tokens)

    async def abort(self, request_id: str) -> None:
        """Forget a request, wherever it is."""
        self._outputs.drop(request_id)
        self._send(Abort(request_id))

    async def shutdown(self, drain_seconds: float = 0.0) -> None:
        """Wait up to drain_seconds for requests in flight, then end the core."""
        deadline = asyncio.get_running_loop().time() + drain_seconds
        while self._streams and not self.dead and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        self._die(EngineDead("the engine is shutting down"))
        if self._channel is not None:
            self._channel.close()
        await self.core.end()
        if self._reader is not None:
            await asyncio.wait([self._reader])

    # ------------------------------------------------------------------ the core's side

    def _send(self, message: Add | Abort) -> None:
        assert self._channel is not None
        self._channel.send(message)

    async def _read(self, channel: Channel) -> None:
        """Take what the core says until it is gone."""
        try:
            while True:
                self._hear(await channel.receive())
        except EOFError:
            code = await self.core.end()
            self._die(EngineDead(f"the engine process ended unexpectedly (exit code {code})"))
        except Exception:  # a fault of ours: nobody may be left waiting for outputs that nobody reads
            logger.exception("the engine's outputs could not be handled")
            self._die(EngineDead("the engine's outputs could not be handled; see the log"))

    def _hear(self, message: FromCore) -> None:
        match message:
            case Ready(capacity) if self._death is None:
                self._inputs = InputProcessor(self.config.model, self.tokenizer, capacity)
                self._outputs = OutputProcessor(self.tokenizer, self.metrics)
                self._loaded.set_result(message)
            case Failed():
                self._die(message.exception())
            case Stepped(step):
                self._deliver(step)

    def _deliver(self, step: StepOutputs) -> None:
        reports, failures, aborts = self._outputs.take(step)
        for report in reports:
            if (stream := self._streams.get(report.request_id)) is not None:
                stream.put_nowait(report)
        for request_id, error in failures.items():
            if (stream := self._streams.get(request_id)) is not None:
                stream.put_nowait(error)
        for request_id, index in aborts:
            self._send(Abort(request_id, index))

    def _die(self, reason: OctavoError) -> None:
        """The first reason counts: everyone who waits hears it."""
        if self._death is not None:
            return
        self._death = reason
        if not self._loaded.done():
            self._loaded.set_exception(reason)
            self._loaded.exception()  # heard: nobody may be waiting
        for stream in self._streams.values():
            stream.put_nowait(reason)
