"""AsyncLLMEngine: the asynchronous face. It lives in the API process; the core and its model live in another.

One async generator per request. Text is made here, tokens there, so serving never waits for a kernel and a kernel
never waits for a client. When a core dies, the next one goes on with every request after the tokens it has sent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable

from octavo.checkpoint import Checkpoint, resolve
from octavo.config import EngineConfig, replace
from octavo.engine.channel import Abort, Add, Look, Rested, Sleep, Wake
from octavo.engine.chat_template import ChatTemplate
from octavo.engine.core import StepOutputs
from octavo.engine.input import InputProcessor, default_sampling
from octavo.engine.lookout import Lookout
from octavo.engine.mailbox import Mailbox
from octavo.engine.output import OutputKind, OutputProcessor
from octavo.engine.roster import CRASH, FOREIGN_KILL, Roster
from octavo.engine.slumber import Slumber, check_level
from octavo.engine.supervisor import Core, CoreProcess, Death, Supervisor
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import EngineDead, InvalidRequest, OctavoError, RequestFailed
from octavo.metrics import Metrics
from octavo.plan import Ability
from octavo.processes import Ready
from octavo.request import BeamSearchParams, PoolingParams, PromptType, RequestOutput, SamplingParams, TextPair
from octavo.snapshot import Blocks, EngineState, EngineView

logger = logging.getLogger(__name__)

_ENCODE_INLINE = 4096  # characters; longer texts are encoded off the event loop
QUEUED_REQUESTS = 1024  # may wait in a server that sets no bound of its own
_LOOK_SECONDS = 0.02  # between looks whether all requests are finished
_LONG_CONTEXT = 131072  # tokens; upper end of the metrics' buckets where a model does not name its own


class AsyncLLMEngine:
    """Made by `start`. Every method belongs to the event loop that started it.

    start_core: makes a core for the supervisor, and another after a crash. clock: seconds for metrics and arrivals.
    version: of the model, where there are several.
    """

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        start_core: Callable[[], Core] = CoreProcess,
        clock: Callable[[], float] = time.monotonic,
        version: int = 1,
    ) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self.version = version
        self.tokenizer = tokenizer
        self.chat_template = ChatTemplate.for_model(config.model, tokenizer)
        self.default_sampling = default_sampling(config.model, checkpoint)
        self.metrics = Metrics(
            next(iter(config.model.served_model_name), checkpoint.name),
            longest=checkpoint.config.get("max_position_embeddings") or _LONG_CONTEXT,
            version=version,
        )
        self._clock = clock
        self._supervisor = Supervisor(config, checkpoint, self, start_core)
        self._roster = Roster()
        self._lookout = Lookout()
        self._slumber = Slumber()
        self._outputs = OutputProcessor(tokenizer, self.metrics, clock)
        self._mailboxes: dict[str, Mailbox] = {}
        self._leaving: dict[str, asyncio.Event] = {}  # aborted, but the core may still speak of them
        self._loaded: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._life: asyncio.Task[None] | None = None
        self._death: OctavoError | None = None

    @classmethod
    async def start(cls, config: EngineConfig, version: int = 1) -> AsyncLLMEngine:
        """Find the model and start the core; returns while the core still loads. Raises CheckpointError."""
        if config.scheduler.max_num_queued_reqs is None:
            bounded = replace(config.scheduler, max_num_queued_reqs=QUEUED_REQUESTS)
            config = replace(config, scheduler=bounded)
        core = CoreProcess()  # it imports its libraries while we look for the model
        try:
            checkpoint = await asyncio.to_thread(resolve, config.model)
            tokenizer = await asyncio.to_thread(Tokenizer.from_checkpoint, checkpoint, config.model.tokenizer)
            engine = cls(config, checkpoint, tokenizer, version=version)
        except BaseException:
            await core.end()
            raise
        engine.run(core)
        return engine

    def run(self, core: Core) -> None:
        """Begin to work with a core that was just started."""
        self._life = asyncio.create_task(self._live(core))

    # ------------------------------------------------------------------ state

    @property
    def ready(self) -> bool:
        return self._loaded.done() and self._death is None

    @property
    def moving(self) -> bool:
        """Whether a core computes, or would; requests may be made while another is started, and wait."""
        return self.ready and self._supervisor.moving and self._slumber.open

    @property
    def is_sleeping(self) -> bool:
        return self._slumber.asleep

    @property
    def dead(self) -> bool:
        return self._death is not None

    @property
    def waits(self) -> bool:
        """Whether the core owes us something: be it only that it lets go of what nobody waits for any more."""
        return self._roster.aboard or bool(self._leaving)

    async def wait_ready(self) -> None:
        """Until the model is loaded. Raises the core's own error if it could not be."""
        if self._death is not None:
            raise self._death
        await asyncio.shield(self._loaded)

    async def wait_dead(self) -> OctavoError:
        """Until there is no core any more; why."""
        assert self._life is not None
        await asyncio.wait([self._life])
        return self._death or EngineDead("the engine was shut down")

    @property
    def ability(self) -> Ability:
        """What the model is for. Known once ready."""
        return self._loaded.result().capacity.ability

    @property
    def max_model_len(self) -> int:
        """Known once ready."""
        return self._loaded.result().capacity.max_model_len

    async def look(self) -> EngineView:
        """How things stand, for people who watch."""
        if self._supervisor.up and self._lookout.due():
            self._supervisor.send(Look())
        blocks = await self._lookout.newest()
        requests, hidden = self._outputs.look()
        stats = self.metrics.stats
        return EngineView(
            state=self._state(),
            time=self._clock(),
            running=stats.running,
            waiting=stats.waiting,
            totals=self.metrics.totals(),
            requests=requests,
            hidden_requests=hidden,
            blocks=blocks,
        )

    def _state(self) -> EngineState:
        if self.dead:
            return "dead"
        if not self.ready:
            return "loading"
        return "asleep" if self.is_sleeping else "ready" if self.moving else "recovering"

    # ------------------------------------------------------------------ requests

    async def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams | BeamSearchParams | PoolingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        output_kind: OutputKind = "cumulative",
    ) -> AsyncIterator[RequestOutput]:
        """Yields outputs as they come: all so far, or with "delta" only what is new. Closing it aborts the request.

        With PoolingParams there is one output, whose `pooled` is the vector. Raises InvalidRequest or ContextTooLong
        before anything is queued; Asleep, Overloaded, RequestFailed or EngineDead.
        """
        await self.wait_ready()
        self._slumber.check()
        if request_id in self._mailboxes:
            raise InvalidRequest(f"request id {request_id!r} is in use", param="request_id")
        mailbox = self._mailboxes[request_id] = Mailbox(output_kind)
        try:
            if request_id in self._leaving:
                await self._leaving[request_id].wait()
            if isinstance(sampling_params, PoolingParams):
                text, (ids, _) = None, await self.encode_to_pool(prompt)
            else:
                text, ids = await self.encode(prompt)
            grammar = await self._grammar(sampling_params)
            request = self._inputs.request(
                request_id, ids, sampling_params, priority=priority, cache_salt=cache_salt, grammar=grammar
            )
            if self._death is not None:  # while we encoded
                raise self._death
            self._outputs.add(request, text, output_kind)
            self._roster.add(request_id, silent=request.beam is not None)
            self._board(newcomer=request_id)
            finished = False
            while not finished:
                output = await mailbox.take()
                finished = output.finished
                yield output
        finally:
            del self._mailboxes[request_id]
            await self.abort(request_id)

    async def encode(self, prompt: PromptType, *, add_special_tokens: bool = True) -> tuple[str | None, list[int]]:
        """The prompt's text, if it has one, and its token ids; long texts are encoded off the event loop.

        Raises InvalidRequest or ContextTooLong.
        """
        await self.wait_ready()
        if isinstance(prompt, str) and len(prompt) > _ENCODE_INLINE:
            return await asyncio.to_thread(self._inputs.encode, prompt, add_special_tokens)
        return self._inputs.encode(prompt, add_special_tokens)

    async def encode_to_pool(
        self, prompt: PromptType | TextPair, *, truncate: int | None = None, add_special_tokens: bool = True
    ) -> tuple[list[int], int | None]:
        """Token ids of what is to be pooled, and where the second segment of a pair begins; `PoolingParams.second`.

        truncate: cut to so many tokens, -1 to the longest that the model takes. Raises InvalidRequest, ContextTooLong.
        """
        await self.wait_ready()
        texts = prompt if isinstance(prompt, tuple) else (prompt,)
        if sum(len(text) for text in texts if isinstance(text, str)) > _ENCODE_INLINE:
            return await asyncio.to_thread(self._inputs.encode_to_pool, prompt, truncate, add_special_tokens)
        return self._inputs.encode_to_pool(prompt, truncate, add_special_tokens)

    async def _grammar(self, params: SamplingParams | BeamSearchParams | PoolingParams) -> str | None:
        if not isinstance(params, SamplingParams) or params.structured_outputs is None:
            return None
        return await asyncio.to_thread(self._inputs.grammar, params)

    async def abort(self, request_id: str) -> None:
        """Forget a request, wherever it is; who still waits for it gets RequestFailed."""
        self._outputs.drop(request_id)
        self._leave(request_id)
        if (mailbox := self._mailboxes.get(request_id)) is not None:
            mailbox.fail(RequestFailed("the request was aborted"))
        self._board()

    # ------------------------------------------------------------------ sleep

    async def sleep(self, level: int = 1) -> None:
        """Free the memory that the model takes until `wake_up`, once the requests in flight are finished.

        level 1: a GPU's weights stay in the machine's memory; 2, and on a CPU: they are read again when it wakes.
        Requests that come meanwhile get Asleep. Who is cancelled before they are finished has asked for nothing.
        Raises InvalidRequest, ConfigError or EngineDead.
        """
        check_level(level)
        await self.wait_ready()
        async with self._slumber.turn:
            await self._slumber.settled()
            if self.is_sleeping:
                return
            await self._finish_all()
            logger.info("%s falls asleep, level %d", self.checkpoint.name, level)
            self._slumber.tell(asleep=True)
            self._supervisor.send(Sleep(level))
            await self._slumber.obeyed()
            logger.info("%s is asleep", self.checkpoint.name)

    async def _finish_all(self) -> None:
        """Let nobody in; until the core is there and has nothing to do. Raises EngineDead."""
        self._slumber.open = False
        try:
            while self._mailboxes or self.waits or not self._supervisor.up:
                if self._death is not None:
                    raise self._death
                await asyncio.sleep(_LOOK_SECONDS)
        except BaseException:
            self._slumber.open = True
            raise

    async def wake_up(self) -> None:
        """As it was before it slept; nothing is cached.

        Raises ConfigError, CheckpointError or EngineDead: why it cannot be; it sleeps on then.
        """
        await self.wait_ready()
        async with self._slumber.turn:
            await self._slumber.settled()
            if not self.is_sleeping:
                return
            logger.info("%s wakes up", self.checkpoint.name)
            self._slumber.tell(asleep=False)
            if self._supervisor.up:
                self._supervisor.send(Wake())
            await self._slumber.obeyed()
            logger.info("%s is awake", self.checkpoint.name)

    def rest(self, answer: Rested) -> None:
        self._slumber.answer(None if answer.failed is None else answer.failed.exception())

    async def needs_core(self) -> None:
        await self._slumber.needed()

    async def shutdown(self, drain_seconds: float = 0.0) -> None:
        """Wait up to drain_seconds for requests in flight, then end the core."""
        deadline = asyncio.get_running_loop().time() + drain_seconds
        while self._mailboxes and not self.dead and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
        self._die(EngineDead("the engine is shutting down"))
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])

    # ------------------------------------------------------------------ to the core

    def _board(self, newcomer: str | None = None) -> None:
        """Send the core whatever it may have now."""
        if not self._supervisor.up:
            return
        for request_id, again in self._roster.board():
            state = self._outputs[request_id]
            self._supervisor.send(Add(state.request if request_id == newcomer else state.resumed()))
            self.metrics.resumed.inc(again)

    def _leave(self, request_id: str, index: int | None = None) -> None:
        """The core need not go on with a request, or with one of its sequences."""
        aboard = self._roster.is_aboard(request_id)
        if index is None:
            self._roster.end(request_id)
        if aboard and self._supervisor.up:
            self._supervisor.send(Abort(request_id, index))
            if index is None:
                self._leaving[request_id] = asyncio.Event()

    # ------------------------------------------------------------------ from the core

    async def _live(self, core: Core) -> None:
        try:
            self._die(await self._supervisor.run(core))
        except Exception:  # a fault of ours: nobody may be left waiting for outputs that nobody reads
            logger.exception("the engine's outputs could not be handled")
            self._die(EngineDead("the engine's outputs could not be handled; see the log"))

    def welcome(self, ready: Ready) -> None:
        """A core is loaded and empty: the first one, or one that takes over."""
        if self._death is not None:
            return
        self.metrics.watch(ready.pid)
        if not self._loaded.done():
            self._inputs = InputProcessor(
                self.config.model, self.tokenizer, ready.capacity, self._clock, self.checkpoint.pooling
            )
            self.metrics.describe_cache(self.config.cache, ready.capacity)
            self._loaded.set_result(ready)
        self._board()
        self._slumber.answer()  # one that was waited for is awake

    def mourn(self, death: Death) -> None:
        """All its requests go on in the next core, but for one that has killed too often."""
        self.metrics.restart()
        self._lookout.see(None)
        if self._slumber.falling:
            self._slumber.answer()  # what it held is free
        self._release(list(self._leaving))
        guilty = self._roster.bury(FOREIGN_KILL if death.foreign_kill else CRASH)
        if guilty is not None:
            self._roster.end(guilty)
            self._fail(guilty, RequestFailed("the engine process crashed each time that it computed this request"))

    def hear(self, step: StepOutputs) -> None:
        news = self._outputs.take(step)
        self._release(step.released)
        self._roster.advance(output.request_id for output in step.outputs)
        ended = {report.request_id for report in news.reports if report.finished}
        for request_id, index in news.aborts:  # the core may be a step ahead of an end that a stop string made
            self._leave(request_id, None if request_id in ended else index)
        for report in news.reports:
            if report.finished:
                self._roster.end(report.request_id)
            if (mailbox := self._mailboxes.get(report.request_id)) is not None:
                mailbox.put(report)
        for request_id, error in news.failures.items():
            self._roster.end(request_id)
            self._fail(request_id, error)
        self._board()

    def see(self, blocks: Blocks) -> None:
        self._lookout.see(blocks)

    def _release(self, request_ids: Iterable[str]) -> None:
        """The core says no more of these."""
        for request_id in request_ids:
            if (released := self._leaving.pop(request_id, None)) is not None:
                released.set()

    def _fail(self, request_id: str, error: OctavoError) -> None:
        self._outputs.drop(request_id, "error")
        if (mailbox := self._mailboxes.get(request_id)) is not None:
            mailbox.fail(error)

    def _die(self, reason: OctavoError) -> None:
        """The first reason counts: everyone who waits hears it."""
        if self._death is not None:
            return
        self._death = reason
        self._slumber.answer(reason)
        self._release(list(self._leaving))
        if not self._loaded.done():
            self._loaded.set_exception(reason)
            self._loaded.exception()  # heard: nobody may be waiting
        for request_id, mailbox in self._mailboxes.items():
            self._outputs.drop(request_id, "error")
            self._roster.end(request_id)
            mailbox.fail(reason)
