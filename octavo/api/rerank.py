"""POST /rerank and /score: how well texts go together, in the shapes that Jina's, Cohere's and vLLM's clients know.

A cross-encoder reads a query and a document at once; of any other model it is the cosine of their embeddings.
"""

from __future__ import annotations

import time
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import Response

from octavo.api.desk import Call
from octavo.api.limits import POOLED_TEXTS
from octavo.api.openai.embeddings import Truncate
from octavo.api.openai.types import Count, Int32, PoolingUsage, Timeout
from octavo.api.openai.usage import pooling_usage
from octavo.api.operation import Operation
from octavo.api.pooling import Reading, compare
from octavo.api.wire import json_response
from octavo.engine.ability import pair_up
from octavo.errors import InvalidRequest

Text = Annotated[str, Meta(min_length=1)]
Texts = Text | Annotated[list[Text], Meta(min_length=1, max_length=POOLED_TEXTS)]


class Document(Struct, kw_only=True):
    text: Text


class RerankRequest(Struct, kw_only=True):
    query: Text
    documents: Annotated[list[Text | Document], Meta(min_length=1, max_length=POOLED_TEXTS)]
    model: str | None = None
    top_n: Count | None = None  # 0: all
    return_documents: bool | None = None  # default: true
    truncate_prompt_tokens: Truncate | None = None
    priority: Int32 | None = None
    user: str | None = None
    timeout: Timeout | None = None
    include_cost: bool | None = None


class Ranked(Struct, kw_only=True):
    index: int  # in the request's documents
    document: Document | UnsetType = UNSET
    relevance_score: float


class Ranking(Struct, kw_only=True):
    """Best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: PoolingUsage


class ScoreRequest(Struct, kw_only=True):
    """Either `text_1` and `text_2` or `queries` and `documents`: one with each of many, or each with its mate."""

    model: str | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    truncate_prompt_tokens: Truncate | None = None
    priority: Int32 | None = None
    user: str | None = None
    timeout: Timeout | None = None
    include_cost: bool | None = None


class Score(Struct, kw_only=True):
    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreList(Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: PoolingUsage


async def rerank(call: Call) -> Response:
    """Sort documents by how well they answer a query."""
    request = await call.read(RerankRequest)
    call.deadline.shorten(request.timeout)
    call.tally.costs_are_shown = request.include_cost is True
    served = await call.model(request.model, request.user)
    texts = [document if isinstance(document, str) else document.text for document in request.documents]
    pairs = [(request.query, text) for text in texts]
    scores = await compare(call, served.engine, pairs, _reading(request), "documents")
    best = sorted(range(len(texts)), key=lambda index: (-scores[index], index))[: request.top_n or len(texts)]
    shown = request.return_documents is not False
    results = [
        Ranked(index=index, relevance_score=scores[index], document=Document(text=texts[index]) if shown else UNSET)
        for index in best
    ]
    usage = pooling_usage(call.tally)
    return json_response(Ranking(id=f"rerank-{call.request_id}", model=served.name, results=results, usage=usage))


async def score(call: Call) -> Response:
    """Say how well the texts of each pair go together."""
    request = await call.read(ScoreRequest)
    first, second = _texts(request)
    call.deadline.shorten(request.timeout)
    call.tally.costs_are_shown = request.include_cost is True
    served = await call.model(request.model, request.user)
    scores = await compare(call, served.engine, pair_up(first, second), _reading(request), "text_2")
    answer = ScoreList(
        id=f"score-{call.request_id}",
        created=int(time.time()),
        model=served.name,
        data=[Score(index=index, score=score) for index, score in enumerate(scores)],
        usage=pooling_usage(call.tally),
    )
    return json_response(answer)


def _texts(request: ScoreRequest) -> tuple[str | list[str], str | list[str]]:
    old, new = (request.text_1, request.text_2), (request.queries, request.documents)
    names = ("queries", "documents") if old == (None, None) and new != (None, None) else ("text_1", "text_2")
    chosen = new if names == ("queries", "documents") else old
    if names == ("text_1", "text_2") and new != (None, None):
        message = "Send either 'text_1' and 'text_2' or 'queries' and 'documents', not both."
        raise InvalidRequest(message, param="queries", code="invalid_value")
    for name, texts in zip(names, chosen, strict=True):
        if texts is None:
            message = f"Missing required parameter: '{name}'."
            raise InvalidRequest(message, param=name, code="missing_required_parameter")
    first, second = chosen
    assert first is not None
    assert second is not None
    return first, second


def _reading(request: RerankRequest | ScoreRequest) -> Reading:
    return Reading(truncate=request.truncate_prompt_tokens, priority=request.priority or 0)


OPERATIONS = tuple(
    Operation(method="POST", path=path, handler=handler, takes=takes, gives=gives, in_batches=path.startswith("/v1/"))
    for path, handler, takes, gives in (
        ("/v1/rerank", rerank, RerankRequest, Ranking),
        ("/v2/rerank", rerank, RerankRequest, Ranking),
        ("/rerank", rerank, RerankRequest, Ranking),
        ("/v1/score", score, ScoreRequest, ScoreList),
        ("/score", score, ScoreRequest, ScoreList),
    )
)
