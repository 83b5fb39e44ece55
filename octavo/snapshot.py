"""What can be seen of an engine at work, for people who watch: numbers only, never a prompt, a text or a key.

Plain data that the core and the API process fill in. Nobody makes any of it unless somebody looks.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

MOST_CELLS = 4096  # of a picture of blocks
MOST_REQUESTS = 100  # listed; the others are counted

FREE, KEPT, USED, SHARED = range(4)


class Blocks(Struct, frozen=True):
    """The blocks of a KV cache. Totals are exact; of many blocks the picture has every `stride`-th one."""

    block_size: int  # tokens
    total: int
    used: int  # those shared included
    shared: int  # by several sequences
    kept: int  # of the free ones: content that may be used again
    stride: int
    runs: list[int]  # state (0 free, 1 kept, 2 used, 3 shared) and how many in a row, alternating


class RequestView(Struct, frozen=True, kw_only=True):
    """A request in flight."""

    id: str
    state: Literal["waiting", "running"]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    tokens_per_second: float | None  # since its first token
    first_token_seconds: float | None
    age_seconds: float


EngineState = Literal["loading", "ready", "recovering", "asleep", "dead"]


class EngineView(Struct, frozen=True, kw_only=True):
    """An engine and its requests at one moment. Totals count from its start."""

    state: EngineState
    time: float  # seconds on a clock that only compares with other views of this engine
    running: int  # sequences
    waiting: int
    totals: dict[str, float]
    requests: list[RequestView]  # running ones first, each in order of arrival
    hidden_requests: int  # not listed
    blocks: Blocks | None  # None: not known yet
