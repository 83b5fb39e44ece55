"""An engine, and the models of a server, as those who talk to them see them.

Protocols, so that the HTTP door and the terminal need neither real engines nor a real repository to be tested, and
naming one loads none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from msgspec import Struct
from prometheus_client import Metric

from octavo.config import EngineConfig
from octavo.plan import Ability
from octavo.request import BeamSearchParams, PoolingParams, PromptType, RequestOutput, SamplingParams, TextPair
from octavo.snapshot import EngineView


class Checkpoint(Protocol):
    @property
    def name(self) -> str: ...


class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def token(self, token_id: int) -> str: ...
    def token_id(self, token: str) -> int | None: ...
    def token_bytes(self, token_id: int) -> bytes: ...


class ChatTemplate(Protocol):
    @property
    def source(self) -> str | None: ...
    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str: ...


class Metrics(Protocol):
    def families(self) -> Iterable[Metric]: ...


class Engine(Protocol):
    """`generate` is an async generator: closing it early aborts the request.

    `max_model_len` and `ability` are known once the engine is ready. `moving`: it computes now; while it does not,
    requests wait.
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
    def version(self) -> int:
        """Of the model, where there are several."""
        ...

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def chat_template(self) -> ChatTemplate: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def ability(self) -> Ability: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def default_sampling(self) -> Mapping[str, Any]: ...

    async def encode(self, prompt: PromptType, *, add_special_tokens: bool = True) -> tuple[str | None, list[int]]: ...

    async def encode_to_pool(
        self, prompt: PromptType | TextPair, *, truncate: int | None = None, add_special_tokens: bool = True
    ) -> tuple[list[int], int | None]: ...

    def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams | BeamSearchParams | PoolingParams,
        request_id: str,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        output_kind: Literal["delta", "cumulative"] = "cumulative",
    ) -> AsyncIterator[RequestOutput]: ...

    async def look(self) -> EngineView:
        """How things stand, for people who watch."""
        ...

    @property
    def is_sleeping(self) -> bool: ...

    async def sleep(self, level: int = 1) -> None:
        """Free its memory, when what runs is finished. Raises InvalidRequest, ConfigError or EngineDead."""
        ...

    async def wake_up(self) -> None:
        """Raises ConfigError, CheckpointError or EngineDead if it cannot be."""
        ...

    async def shutdown(self) -> None: ...


#: Of a version of a model. declared: not loaded, but can be; draining: its last requests are running.
State = Literal["declared", "loading", "ready", "draining", "failed"]


class VersionCard(Struct, kw_only=True):
    """A version of a model as clients may know it."""

    version: int
    state: State
    labels: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A name that clients may use, and what is known of the model behind it."""

    name: str
    model: str
    state: State
    version: int  # that a request of this name gets now
    versions: list[VersionCard]
    root: str  # the checkpoint's name
    max_model_len: int | None  # known once a version has been loaded


class VersionStatus(Struct, kw_only=True):
    """A version of a model as its operator sees it. Times are UNIX seconds."""

    version: int
    state: State
    asleep: bool  # sent to sleep, so that it answers nothing until it is woken
    since: float
    reason: str | None  # why it failed
    source: str | None  # None: the embedded model
    labels: list[str]
    share: float  # of the requests of the bare name
    retired: bool  # no longer declared so, but still loaded
    memory: int | None  # bytes, estimated; None: not looked at yet
    requests: int  # that use it
    waiting: int  # requests that wait for it
    last_used: float | None
    expires_at: float | None  # when it will be unloaded if nobody uses it


class ModelStatus(Struct, kw_only=True):
    """A model as its operator sees it."""

    name: str
    aliases: list[str]
    state: State  # of the version that most requests of the bare name get
    version: int
    changing: bool  # versions that it needs are not all there yet; those before serve meanwhile
    preload: bool
    keep_alive: float | None  # seconds; None: for ever
    versions: list[VersionStatus]


@dataclass(frozen=True, slots=True)
class Served:
    """A model as a request meets it."""

    name: str  # to answer with
    engine: Engine


class Models(Protocol):
    """The models of a server: who gets a request of a name, be it with a label or a version."""

    @property
    def room(self) -> int | None:
        """Most requests that may be in flight, those of all models together; None: any number."""
        ...

    def check(self) -> None:
        """May requests be made now, of whatever model? Raises Overloaded or EngineDead."""
        ...

    def check_ready(self) -> list[str]:
        """Can it generate now? Names of models that cannot although they should. Raises Overloaded or EngineDead."""
        ...

    def lease(self, name: str | None, key: str) -> AbstractAsyncContextManager[Served]:
        """The model of that name, loaded first if need be; None asks for the only one.

        key: requests with the same one get the same version, as far as versions share a name by weight.
        Raises InvalidRequest, ModelNotFound, Overloaded or EngineDead.
        """
        ...

    def known(self) -> Sequence[Known]: ...

    def find(self, name: str) -> Known:
        """What a name stands for, one with a label or a version too. Raises ModelNotFound."""
        ...

    def engines(self, name: str | None = None) -> Sequence[Engine]:
        """Those that are there, loaded or not: of all models, or of one. Raises ModelNotFound."""
        ...

    def drain(self) -> None:
        """The server ends: load nothing any more; who waits for that gets Overloaded."""
        ...

    # What an operator may ask. Each raises ModelNotFound, or InvalidRequest for what cannot be.

    def status(self) -> list[ModelStatus]: ...

    async def load(self, name: str, version: int | None = None) -> ModelStatus:
        """Until it is loaded: all versions that its policy asks for, or one besides. Raises LoadFailed, Overloaded."""
        ...

    def unload(self, name: str, version: int | None = None) -> ModelStatus:
        """What runs is finished; the next request loads it again."""
        ...

    def roll_back(self, name: str) -> ModelStatus:
        """Requests of the bare name go where they went before."""
        ...

    def redirect(
        self, name: str, *, traffic: Mapping[int, int] | None = None, labels: Mapping[str, int] | None = None
    ) -> ModelStatus:
        """Other weights or labels, until the declaration changes."""
        ...
