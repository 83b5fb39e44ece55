"""LLMEngine: the synchronous face. Add requests, call `step` until nothing is unfinished; all in this process."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from octavo.checkpoint import Checkpoint, resolve
from octavo.config import EngineConfig
from octavo.energy import find_meter
from octavo.engine.core import EngineCore
from octavo.engine.guidance import Grammars
from octavo.engine.input import InputProcessor, default_sampling
from octavo.engine.output import OutputKind, OutputProcessor
from octavo.engine.slumber import check_level
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import Asleep, InvalidRequest, OctavoError
from octavo.execution.executor import Executor, make_executor
from octavo.metrics import Metrics
from octavo.request import (
    BeamSearchParams,
    CompletionOutput,
    PoolingParams,
    PromptType,
    RequestOutput,
    SamplingParams,
    TextPair,
)


class LLMEngine:
    """Drives an `EngineCore` step by step. Not for use from several threads at once."""

    def __init__(self, config: EngineConfig, executor: Executor | None = None) -> None:
        self.config = config
        self.checkpoint: Checkpoint = resolve(config.model)
        self.tokenizer = Tokenizer.from_checkpoint(self.checkpoint, config.model.tokenizer)
        self.default_sampling = default_sampling(config.model, self.checkpoint)
        executor = executor or make_executor(config, self.checkpoint)
        capacity = executor.capacity
        grammars = Grammars(lambda: self.tokenizer, capacity.vocab_size)
        self._core = EngineCore(config, executor, grammars=grammars, meter=find_meter(capacity.gpus))
        self.is_sleeping = False
        self.max_model_len = capacity.max_model_len
        self.ability = capacity.ability
        self.metrics = Metrics(self.checkpoint.name, capacity.max_model_len)
        self.metrics.describe_cache(config.cache, capacity)
        self._inputs = InputProcessor(config.model, self.tokenizer, capacity, pooling=self.checkpoint.pooling)
        self._outputs = OutputProcessor(self.tokenizer, self.metrics)

    @classmethod
    def from_engine_args(cls, **arguments: Any) -> LLMEngine:
        """Flat keyword arguments, as `LLM` takes them. Raises ConfigError or CheckpointError."""
        return cls(EngineConfig.of(**arguments))

    def add_request(
        self,
        request_id: str,
        prompt: PromptType | TextPair,
        params: SamplingParams | BeamSearchParams | PoolingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        output_kind: OutputKind = "cumulative",
    ) -> None:
        """Queue a request; a pair of texts can only be pooled.

        Raises InvalidRequest, ContextTooLong, Overloaded or Asleep; then nothing was queued.
        """
        if self.is_sleeping:
            raise Asleep("the model is asleep: call wake_up() first")
        if request_id in self._outputs:
            raise InvalidRequest(f"request id {request_id!r} is in use", param="request_id")
        text: str | None = None
        if isinstance(params, PoolingParams):
            ids, second = self._inputs.encode_to_pool(prompt)
            params = params if second is None else replace(params, second=second)
        elif isinstance(prompt, tuple):
            raise InvalidRequest("a pair of texts cannot be continued", param="prompt")
        else:
            text, ids = self._inputs.encode(prompt)
        grammar = self._inputs.grammar(params)
        request = self._inputs.request(
            request_id, ids, params, priority=priority, cache_salt=cache_salt, grammar=grammar
        )
        self._core.add(request)
        self._outputs.add(request, text, output_kind)

    def step(self) -> list[RequestOutput]:
        """One step of the engine: outputs of the requests that got further, failed ones with reason "error"."""
        if not self._core.has_work:
            return []
        news = self._outputs.take(self._core.step())
        for request_id, index in news.aborts:
            self._core.abort(request_id, index)
        return news.reports + [_failed(request_id, error) for request_id, error in news.failures.items()]

    def abort_request(self, request_id: str | list[str]) -> None:
        """Forget requests, wherever they are. Unknown ids are ignored."""
        for each in [request_id] if isinstance(request_id, str) else request_id:
            self._core.abort(each)
            self._outputs.drop(each)

    def sleep(self, level: int = 1) -> None:
        """Free the memory that the model takes until `wake_up`; prefixes that were cached are forgotten.

        level 1: a GPU's weights stay in the machine's memory; 2, and on a CPU: they are read again when it wakes.
        Raises InvalidRequest while requests are unfinished, ConfigError if the machine's memory is too small.
        """
        check_level(level)
        if self.is_sleeping:
            return
        if self.has_unfinished_requests():
            raise InvalidRequest("requests are unfinished: wait for them, or abort them, before sleep()")
        while self._core.has_work:  # a step under way for what has ended
            self._core.step()
        self._core.sleep(level)
        self.is_sleeping = True

    def wake_up(self) -> None:
        """Raises ConfigError or CheckpointError if it cannot be; then it sleeps on."""
        if self.is_sleeping:
            self._core.wake()
            self.is_sleeping = False

    def has_unfinished_requests(self) -> bool:
        return self._outputs.unfinished > 0

    def get_num_unfinished_requests(self) -> int:
        return self._outputs.unfinished

    def close(self) -> None:
        self._core.close()


def _failed(request_id: str, error: OctavoError) -> RequestOutput:
    part = CompletionOutput(index=0, text="", token_ids=[], finish_reason="error", stop_reason=error.message)
    return RequestOutput(request_id=request_id, prompt=None, prompt_token_ids=[], outputs=[part], finished=True)
