"""POST /v1/embeddings: texts in, a vector of each out."""

from __future__ import annotations

import time
from base64 import b64encode
from typing import Annotated, Literal

from msgspec import Meta, Struct
from starlette.responses import Response

from octavo.api.desk import Call
from octavo.api.limits import POOLED_TEXTS
from octavo.api.openai.prompts import split_prompts
from octavo.api.openai.types import INT_MAX, CacheSalt, Int32, MaxTokens, PoolingUsage, Prompt, Timeout
from octavo.api.openai.usage import pooling_usage
from octavo.api.operation import Operation
from octavo.api.pooling import Reading, embed, written
from octavo.api.wire import json_response
from octavo.request import PoolingParams

Truncate = Annotated[int, Meta(ge=-1, le=INT_MAX)]  # -1: to the longest that the model takes


class EmbeddingRequest(Struct, kw_only=True):
    model: str
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: MaxTokens | None = None
    user: str | None = None
    normalize: bool | None = None  # from here on vLLM's; default: as the model was trained
    truncate_prompt_tokens: Truncate | None = None
    add_special_tokens: bool | None = None
    priority: Int32 | None = None
    cache_salt: CacheSalt | None = None
    timeout: Timeout | None = None  # seconds for the whole answer
    include_cost: bool | None = None  # in `usage`


class Embedding(Struct, kw_only=True):
    """base64 is of float32, little-endian."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    data: list[Embedding]
    model: str
    usage: PoolingUsage


async def embeddings(call: Call) -> Response:
    """Make vectors of texts."""
    request = await call.read(EmbeddingRequest)
    texts = split_prompts(request.input, "input", POOLED_TEXTS)
    params = PoolingParams(normalize=request.normalize, dimensions=request.dimensions)
    call.deadline.shorten(request.timeout)
    call.tally.costs_are_shown = request.include_cost is True
    served = await call.model(request.model, request.user, task="embed")
    reading = Reading(
        truncate=request.truncate_prompt_tokens,
        add_special_tokens=request.add_special_tokens is not False,
        priority=request.priority or 0,
        cache_salt=request.cache_salt,
    )
    vectors = await embed(call, served.engine, texts, params, reading)
    shown = list(map(_base64, vectors)) if request.encoding_format == "base64" else await written(vectors)
    answer = EmbeddingList(
        id=f"embd-{call.request_id}",
        created=int(time.time()),
        data=[Embedding(index=index, embedding=each) for index, each in enumerate(shown)],
        model=served.name,
        usage=pooling_usage(call.tally),
    )
    return json_response(answer)


def _base64(vector: bytes) -> str:
    return b64encode(vector).decode()


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/embeddings",
        handler=embeddings,
        takes=EmbeddingRequest,
        gives=EmbeddingList,
        in_batches=True,
    ),
)
