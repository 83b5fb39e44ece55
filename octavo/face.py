"""An engine as those who talk to it see it: the part of `AsyncLLMEngine` that the HTTP door and the terminal use.

Protocols, so that neither needs the real engine to be tested, and naming one loads none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from octavo.config import EngineConfig
from octavo.request import BeamSearchParams, PromptType, RequestOutput, SamplingParams


class Checkpoint(Protocol):
    @property
    def name(self) -> str: ...


class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int: ...
    @property
    def chat_template(self) -> str | None: ...
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def token(self, token_id: int) -> str: ...
    def token_bytes(self, token_id: int) -> bytes: ...


class ChatTemplate(Protocol):
    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str: ...


class Metrics(Protocol):
    def render(self) -> bytes: ...


class Engine(Protocol):
    """`generate` is an async generator: closing it early aborts the request.

    `max_model_len` is known once the engine is ready. `moving`: it computes now; while it does not, requests wait.
    """

    @property
    def ready(self) -> bool: ...
    @property
    def moving(self) -> bool: ...
    @property
    def dead(self) -> bool: ...
    @property
    def config(self) -> EngineConfig: ...
    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def chat_template(self) -> ChatTemplate: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def default_sampling(self) -> Mapping[str, Any]: ...

    async def encode(self, prompt: PromptType, *, add_special_tokens: bool = True) -> tuple[str | None, list[int]]: ...

    def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams | BeamSearchParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        output_kind: Literal["delta", "cumulative"] = "cumulative",
    ) -> AsyncIterator[RequestOutput]: ...

    async def shutdown(self) -> None: ...
