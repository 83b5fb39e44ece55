"""GET /openapi.json: complete, resolvable, and true of what the endpoints answer."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from fake_engine import Client, chat, completion

from octavo.api import openapi
from octavo.api.app import OPERATIONS
from octavo.api.limits import Limits
from octavo.config import ServerConfig

ERROR = {"model": 7}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    reply = Client().get("/openapi.json")
    assert reply.status == 200
    return reply.json


def test_a_disk_is_filled_by_files_only(document: dict[str, Any]) -> None:
    assert "507" in document["paths"]["/v1/files"]["post"]["responses"]
    assert "507" not in document["paths"]["/v1/chat/completions"]["post"]["responses"]


def test_the_document_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes long enough to be felt by everybody else."""
    first = Client().get("/openapi.json").body
    monkeypatch.setattr(openapi, "document", lambda _: pytest.fail("written again"))
    assert Client().get("/openapi.json").body == first


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
        ("/v1/responses", {"model": "fake-model", "input": "Hi", "top_logprobs": 1, "metadata": {"a": "b"}}),
        ("/v1/messages", {**chat(), "max_tokens": 9, "thinking": {"type": "disabled"}}),
        ("/v1/messages/count_tokens", chat(system=[{"type": "text", "text": "x"}])),
        ("/api/chat", chat(stream=False, logprobs=True, options={"num_predict": 3, "stop": "x"}, keep_alive="5m")),
        ("/api/generate", {"model": "fake-model", "prompt": "Hi", "stream": False, "think": "low"}),
        ("/api/embed", {"model": "fake-model", "input": ["a", "b"]}),
        ("/api/embeddings", {"model": "fake-model", "prompt": "a"}),
        ("/api/show", {"model": "fake-model"}),
        ("/v1/embeddings", {"model": "fake-model", "input": ["abc", "d"]}),
        ("/v1/embeddings", {"model": "fake-model", "input": [[97], [98, 99]], "encoding_format": "base64"}),
        ("/v1/rerank", {"query": "ab", "documents": ["a", {"text": "c"}]}),
        ("/v1/score", {"text_1": "ab", "text_2": ["a", "c"]}),
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


@pytest.mark.parametrize(
    ("path", "body", "media"),
    [
        ("/v1/responses", {"model": "fake-model", "input": "Hi"}, "text/event-stream"),
        ("/v1/messages", {**chat(), "max_tokens": 9}, "text/event-stream"),
        ("/api/chat", chat(), "application/x-ndjson"),
        ("/api/generate", {"model": "fake-model", "prompt": "Hi"}, "application/x-ndjson"),
    ],
)
def test_other_dialects_events_are_as_described(document, path: str, body: dict[str, Any], media: str) -> None:
    described = document["paths"][path]["post"]["responses"]["200"]["content"][media]["x-event"]
    lines = Client().post(path, {**body, "stream": True}).body.decode().splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.endswith("}")]
    assert len(events) > 3
    for event in events:
        validate(document, described, event)


@pytest.mark.parametrize(
    "path",
    [
        "/api/tags",
        "/api/ps",
        "/api/version",
        "/live",
        "/ready",
        "/health",
        "/version",
        "/v1/models",
        "/v1/models/{model}",
    ],
)
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


def test_files_and_batches_are_as_described(document, tmp_path) -> None:
    client = Client(config=ServerConfig(data_dir=str(tmp_path)), limits=Limits(free_disk_bytes=0))
    head = (
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\nContent-Disposition: form-data; '
    )
    data = f'{head}name="file"; filename="f"\r\n\r\n{{}}\r\n--b--\r\n'.encode()
    headers = {"content-type": "multipart/form-data; boundary=b"}
    file = client.request("POST", "/v1/files", data=data, headers=headers)
    for path, reply in (("/v1/files", file), ("/v1/files/{file_id}", client.get(f"/v1/files/{file.json['id']}"))):
        method = "post" if path == "/v1/files" else "get"
        described = document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
        validate(document, described, reply.json)
    for path in ("/v1/files", "/v1/batches"):
        described = document["paths"][path]["get"]
        validate(
            document, described["responses"]["200"]["content"]["application/json"]["schema"], client.get(path).json
        )
        assert {"after", "limit"} <= {parameter["name"] for parameter in described["parameters"]}
    client.app.state.desk.batch.close()
