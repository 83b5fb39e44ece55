"""POST /api/embed and its forerunner /api/embeddings: vectors of texts, as Ollama's."""

from __future__ import annotations

from starlette.responses import Response

from octavo.api.desk import Call
from octavo.api.ollama.answer import Clock
from octavo.api.ollama.request import model_name
from octavo.api.ollama.types import (
    EMBED_WITHOUT_EFFECT,
    EmbedAnswer,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    EmbedRequest,
)
from octavo.api.operation import Operation
from octavo.api.pooling import Reading, embed, written
from octavo.api.wire import json_response
from octavo.request import PoolingParams
from octavo.vectors import floats

_LONGEST = -1  # texts are cut to what the model takes


async def embed_texts(call: Call) -> Response:
    """Vectors of texts, as Ollama's."""
    request = await call.read(EmbedRequest)
    clock = Clock()
    texts = [request.input] if isinstance(request.input, str) else request.input or []
    served = await call.model(model_name(request.model), task="embed")
    clock.prepared()
    params = PoolingParams(normalize=True, dimensions=request.dimensions)
    reading = Reading(truncate=None if request.truncate is False else _LONGEST)
    vectors = await embed(call, served.engine, texts, params, reading) if texts else []
    spent = clock.fields()
    return json_response(
        EmbedAnswer(
            model=request.model,
            embeddings=await written(vectors),
            total_duration=spent["total_duration"],
            load_duration=spent["load_duration"],
            prompt_eval_count=call.tally.prompt_tokens,
        )
    )


async def embed_prompt(call: Call) -> Response:
    """A vector of one text, as Ollama's older clients ask for it."""
    request = await call.read(EmbeddingsRequest)
    served = await call.model(model_name(request.model), task="embed")
    texts = [request.prompt] if request.prompt else []
    vectors = await embed(call, served.engine, texts, PoolingParams(), Reading(truncate=_LONGEST)) if texts else [b""]
    return json_response(EmbeddingsAnswer(embedding=floats(vectors[0])))


OPERATIONS = (
    Operation(
        method="POST",
        path="/api/embed",
        handler=embed_texts,
        takes=EmbedRequest,
        gives=EmbedAnswer,
        any_media=True,
        without_effect=EMBED_WITHOUT_EFFECT,
    ),
    Operation(
        method="POST",
        path="/api/embeddings",
        handler=embed_prompt,
        takes=EmbeddingsRequest,
        gives=EmbeddingsAnswer,
        any_media=True,
        without_effect=EMBED_WITHOUT_EFFECT,
    ),
)
