"""GET /openapi.json: complete, resolvable, and true of what the endpoints answer."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from fake_engine import Client, chat, completion

from octavo.api.app import OPERATIONS

ERROR = {"model": 7}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    reply = Client().get("/openapi.json")
    assert reply.status == 200
    return reply.json


def validate(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """`value` is what the schema, whose references point into the document, says."""
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for child in node.values() for found in references(child)]
    return [found for child in node for found in references(child)] if isinstance(node, list) else []


def test_every_operation_is_described_once(document) -> None:
    described = [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]
    assert sorted(described) == sorted((each.method, each.path.replace(":path", "")) for each in OPERATIONS)
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_references_lead_somewhere(document) -> None:
    names = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert names <= document["components"]["schemas"].keys()
    assert "ChatRequest" in names


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat(logprobs=True, top_logprobs=2, n=2, prompt_logprobs=1)),
        ("/v1/completions", completion(logprobs=2, echo=True, n=2)),
        ("/tokenize", {"prompt": "Hi", "return_token_strs": True}),
        ("/detokenize", {"tokens": [72, 105]}),
        ("/generate", {"prompt": "Hi"}),
    ],
)
def test_bodies_and_answers_are_as_described(document, path: str, body: dict[str, Any]) -> None:
    operation = document["paths"][path]["post"]
    validate(document, operation["requestBody"]["content"]["application/json"]["schema"], body)
    reply = Client().post(path, body)
    assert reply.status == 200
    validate(document, operation["responses"]["200"]["content"]["application/json"]["schema"], reply.json)


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", chat()), ("/v1/completions", completion())])
def test_events_are_as_described(document, path: str, body: dict[str, Any]) -> None:
    described = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["x-event"]
    reply = Client().post(path, {**body, "stream": True, "stream_options": {"include_usage": True}})
    *events, last = reply.events
    assert len(events) > 3
    assert last == "[DONE]"
    for event in events:
        validate(document, described, event)


@pytest.mark.parametrize("path", ["/live", "/ready", "/health", "/version", "/v1/models", "/v1/models/{model}"])
def test_plain_answers_are_as_described(document, path: str) -> None:
    reply = Client().get(path.replace("{model}", "fake-model"))
    assert reply.status == 200
    content = document["paths"][path]["get"]["responses"]["200"]["content"]
    validate(document, content["application/json"]["schema"], reply.json)


@pytest.mark.parametrize("body", [ERROR, {"model": "other", "messages": [{"role": "user", "content": "Hi"}]}])
def test_errors_are_as_described(document, body: dict[str, Any]) -> None:
    reply = Client().post("/v1/chat/completions", body)
    described = document["paths"]["/v1/chat/completions"]["post"]["responses"][str(reply.status)]
    validate(document, described["content"]["application/json"]["schema"], reply.json)


def test_the_document_says_what_decoding_checks(document) -> None:
    """A body that the document refuses is refused, for one field of each kind of limit."""
    schema = {**document["components"]["schemas"]["ChatRequest"], "components": document["components"]}
    validator = jsonschema.Draft202012Validator(schema)
    for fields in ({"top_p": 2}, {"messages": []}, {"n": 0}, {"stop": [""]}, {"seed": "x"}, {"temperature": -1}):
        assert not validator.is_valid(chat(**fields)), fields
        assert Client().post("/v1/chat/completions", chat(**fields)).status == 400, fields
    assert validator.is_valid(json.loads(json.dumps(chat(top_p=0.5, stop=["x"]))))
