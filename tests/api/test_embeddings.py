"""/v1/embeddings, /v1/rerank and /v1/score over a scripted engine."""

from __future__ import annotations

import asyncio
import json
from array import array
from base64 import b64decode
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, chat, completion

from octavo.api import pooling
from octavo.api.limits import POOLED_AT_ONCE, POOLED_TEXTS, Limits
from octavo.config import EngineConfig
from octavo.errors import RequestFailed
from octavo.plan import Ability

CROSS_ENCODER = Ability(tasks=("classify",), classes=1)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake-model", "input": "abba", **fields}


def vectors(reply: Any) -> list[list[float]]:
    assert [entry["index"] for entry in reply.json["data"]] == list(range(len(reply.json["data"])))
    return [entry["embedding"] for entry in reply.json["data"]]


def test_a_text_becomes_a_vector_of_floats() -> None:
    reply = Client().post("/v1/embeddings", body())
    assert reply.status == 200
    assert vectors(reply) == [[2.0, 2.0, 0.0, 0.0]]
    assert reply.json["object"] == "list"
    assert reply.json["data"][0]["object"] == "embedding"
    assert reply.json["model"] == "fake-model"
    assert reply.json["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["ab", "c"], [[1, 1, 0, 0], [0, 0, 1, 0]]),
        ([97, 97, 100], [[2, 0, 0, 1]]),
        ([[97], [98, 98]], [[1, 0, 0, 0], [0, 2, 0, 0]]),
    ],
)
def test_inputs_come_in_four_shapes(texts: Any, expected: list[list[float]]) -> None:
    assert vectors(Client().post("/v1/embeddings", body(input=texts))) == expected


def test_base64_is_the_same_vector() -> None:
    (packed,) = vectors(Client().post("/v1/embeddings", body(encoding_format="base64")))
    assert array("f", b64decode(packed)).tolist() == [2.0, 2.0, 0.0, 0.0]


def test_what_the_caller_asks_reaches_the_engine() -> None:
    engine = FakeEngine()
    fields = {"dimensions": 2, "normalize": False, "priority": -3, "cache_salt": "s", "add_special_tokens": False}
    reply = Client(engine).post("/v1/embeddings", body(**fields))
    assert vectors(reply) == [[2.0, 2.0]]
    (made,) = engine.calls
    assert made["prompt"] == list(b"abba")
    assert (made["params"].dimensions, made["params"].normalize) == (2, False)
    assert (made["priority"], made["cache_salt"]) == (-3, "s")


def test_a_long_text_is_refused_unless_it_may_be_cut() -> None:
    long = "a" * 300
    reply = Client().post("/v1/embeddings", body(input=long))
    assert (reply.status, reply.json["error"]["code"]) == (400, "context_length_exceeded")
    assert reply.json["error"]["param"] == "input"
    assert vectors(Client().post("/v1/embeddings", body(input=long, truncate_prompt_tokens=-1)))[0][0] == 127
    assert vectors(Client().post("/v1/embeddings", body(input=long, truncate_prompt_tokens=11)))[0][0] == 10


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a", 5]}, "input"),
        ({"input": ["a"] * (POOLED_TEXTS + 1)}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], param: str) -> None:
    engine = FakeEngine()
    reply = Client(engine).post("/v1/embeddings", body(**fields))
    assert reply.status == 400
    assert reply.json["error"]["param"] == param
    assert not engine.calls


def test_a_long_list_goes_in_order_and_leaves_room_for_others() -> None:
    most = 0

    class Counting(FakeEngine):
        async def _pooled(self, *args: Any) -> Any:
            nonlocal most
            most = max(most, len(self.running))
            await asyncio.sleep(0)
            return await super()._pooled(*args)

    texts = ["a" * (number % 50) + "b" for number in range(1000)]
    reply = Client(Counting()).post("/v1/embeddings", body(input=texts))
    assert [vector[0] for vector in vectors(reply)] == [number % 50 for number in range(1000)]
    assert 1 < most <= POOLED_AT_ONCE


def test_a_long_list_fits_a_server_with_a_small_queue() -> None:
    """It would be refused for ever if all of it had to find room at once."""
    small = EngineConfig.of(max_num_seqs=2, max_num_queued_reqs=1)
    assert Client(FakeEngine(config=small)).post("/v1/embeddings", body(input=["a"] * 50)).status == 200


def test_one_failure_ends_the_request_and_its_other_texts() -> None:
    engine = FakeEngine(error=RequestFailed("no"))
    assert Client(engine).post("/v1/embeddings", body(input=["a"] * 5)).status == 500
    assert not engine.running


def test_a_request_whose_time_is_over_aborts_its_texts() -> None:
    engine = FakeEngine(hang_after=0)
    reply = Client(engine, limits=Limits(request_seconds=0.05)).post("/v1/embeddings", body(input=["a", "b"]))
    assert reply.status == 408
    assert len(engine.aborted) == 2


def test_a_model_that_only_embeds_says_so_when_asked_to_generate() -> None:
    engine = FakeEngine(ability=Ability(tasks=("embed",)))
    for path, request in (
        ("/v1/chat/completions", chat()),
        ("/v1/completions", completion()),
        ("/generate", {"prompt": "a"}),
    ):
        reply = Client(engine).post(path, request)
        assert (reply.status, reply.json["error"]["code"]) == (400, "unsupported_task"), path
        assert "/v1/embeddings" in reply.json["error"]["message"]
    assert not engine.calls


def test_a_cross_encoder_says_so_when_asked_to_embed() -> None:
    reply = Client(FakeEngine(ability=CROSS_ENCODER)).post("/v1/embeddings", body())
    assert (reply.status, reply.json["error"]["code"]) == (400, "unsupported_task")
    assert "/v1/rerank" in reply.json["error"]["message"]


DOCUMENTS: list[Any] = ["ccc", {"text": "ab"}, "abc", "dd"]


def results(reply: Any) -> list[tuple[int, float]]:
    assert reply.status == 200, reply.json
    return [(entry["index"], pytest.approx(entry["relevance_score"])) for entry in reply.json["results"]]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_ranked_by_the_cosine_of_their_embeddings(path: str) -> None:
    reply = Client().post(path, {"query": "ab", "documents": DOCUMENTS, "model": "fake-model"})
    assert results(reply) == [(1, 1.0), (2, (2 / 3) ** 0.5), (0, 0.0), (3, 0.0)]
    assert reply.json["results"][0]["document"] == {"text": "ab"}
    tokens = sum(1 + len(text) for text in ("ab", "ccc", "abc", "dd"))  # a text is computed once
    assert reply.json["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_a_cross_encoder_reads_query_and_document_together() -> None:
    engine = FakeEngine(ability=CROSS_ENCODER)
    fields = {"query": "ab", "documents": DOCUMENTS, "top_n": 2, "return_documents": False}
    reply = Client(engine).post("/v1/rerank", fields)
    assert results(reply) == [(1, 1.0), (2, 2 / 3)]
    assert "document" not in reply.json["results"][0]
    assert {call["params"].task for call in engine.calls} == {"classify"}


def test_a_classifier_of_several_classes_compares_nothing() -> None:
    engine = FakeEngine(ability=Ability(tasks=("classify",), classes=3))
    reply = Client(engine).post("/v1/rerank", {"query": "a", "documents": ["b"]})
    assert (reply.status, reply.json["error"]["code"]) == (400, "unsupported_task")


def test_rerank_with_top_n_of_zero_or_many_gives_all() -> None:
    for count in (0, 99):
        assert len(results(Client().post("/rerank", {"query": "a", "documents": DOCUMENTS, "top_n": count}))) == 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": [""]}, "documents[0]"),
        ({"documents": [{"title": "a"}]}, "documents[0].text"),
        ({"query": ""}, "query"),
        ({"top_n": -1}, "top_n"),
        ({"documents": ["a" * 500]}, "documents"),
    ],
)
def test_bad_fields_of_rerank_are_named(fields: dict[str, Any], param: str) -> None:
    reply = Client().post("/rerank", {"query": "a", "documents": ["b"], **fields})
    assert reply.status == 400
    assert reply.json["error"]["param"] == param


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize("ability", [Ability(width=4), CROSS_ENCODER])
def test_scores_of_one_with_many_and_of_mates(path: str, ability: Ability) -> None:
    for fields, count in (
        ({"text_1": "ab", "text_2": "ab"}, 1),
        ({"text_1": "ab", "text_2": ["ab", "d"]}, 2),
        ({"queries": ["ab", "c"], "documents": ["ab", "d"]}, 2),
    ):
        reply = Client(FakeEngine(ability=ability)).post(path, fields)
        assert reply.status == 200, reply.json
        assert [entry["score"] for entry in reply.json["data"]] == [pytest.approx(1.0), 0.0][:count]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "text_1"),
        ({"text_1": "a"}, "text_2"),
        ({"queries": "a"}, "documents"),
        ({"text_1": "a", "text_2": "b", "queries": "a"}, "queries"),
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_2"),
    ],
)
def test_bad_pairs_are_named(fields: dict[str, Any], param: str) -> None:
    reply = Client().post("/score", fields)
    assert reply.status == 400
    assert reply.json["error"]["param"] == param


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", body()),
        ("/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("/v1/score", {"text_1": "a", "text_2": "b"}),
    ],
)
def test_what_it_cost_is_said_where_it_is_asked(path: str, fields: dict[str, Any]) -> None:
    assert "cost" not in Client().post(path, fields).json["usage"]
    cost = Client().post(path, {**fields, "include_cost": True}).json["usage"]["cost"]
    assert cost["compute_seconds"] >= 0


def test_numbers_of_a_long_list_keep_nobody_else_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two vectors that are compared or written, others have their turn."""
    turns = 0
    seen: list[int] = []

    def watched(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            seen.append(turns)
            return function(*arguments)

        return call

    async def scenario(path: str, fields: dict[str, Any]) -> None:
        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(others())
        data = json.dumps({"model": "fake-model", **fields}).encode()
        reply = await Client().send("POST", path, data=data, headers={"content-type": "application/json"})
        ticking.cancel()
        assert reply.status == 200

    monkeypatch.setattr(pooling, "cosine", watched(pooling.cosine))
    monkeypatch.setattr(pooling, "floats", watched(pooling.floats))
    for path, fields in (
        ("/v1/embeddings", {"input": ["a", "b", "c"]}),
        ("/api/embed", {"input": ["a", "b", "c"]}),
        ("/v1/rerank", {"query": "a", "documents": ["a", "b", "c"]}),
    ):
        seen.clear()
        asyncio.run(scenario(path, fields))
        assert len(set(seen)) == 3, path
