"""Every way to ask for a structure means the same to the engine, and its complaints name the way that was taken."""

from __future__ import annotations

import json

import pytest
from fake_engine import Client, FakeEngine, chat, completion

from octavo.errors import InvalidRequest
from octavo.request import StructuredOutputs

CHAT, COMPLETION, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
SCHEMA = {"type": "object", "properties": {"b": {"const": 10**30}, "a": {}}}
TAG = {"structures": [{"begin": "<f>", "schema": {}, "end": "</f>"}], "triggers": ["<f>"]}
WAYS = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None, "guided_regex": None}, None),
    ({"response_format": {"type": "json_object"}}, {"json_object": True}),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, {"json": SCHEMA}),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, {"json": SCHEMA}),
    ({"response_format": {"type": "regex", "regex": "a+"}}, {"regex": "a+"}),
    ({"response_format": {"type": "grammar", "grammar": "start: A"}}, {"grammar": "start: A"}),
    ({"response_format": {"type": "structural_tag", **TAG}}, {"structural_tag": json.dumps(TAG)}),
    ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
     {"json": SCHEMA, "disable_any_whitespace": True}),
    ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
    ({"guided_json": json.dumps(SCHEMA), "guided_whitespace_pattern": " "},
     {"json": json.dumps(SCHEMA), "whitespace_pattern": " "}),
    ({"guided_regex": "a+"}, {"regex": "a+"}),
    ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
    ({"guided_grammar": "start: A"}, {"grammar": "start: A"}),
]  # fmt: skip
BODIES = {CHAT: chat, COMPLETION: completion, GENERATE: lambda **fields: {"prompt": "x", **fields}}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("fields", "meaning"), WAYS, ids=lambda value: str(value)[:60])
def test_every_way_to_ask_reaches_the_engine(path, fields, meaning):
    client = Client()
    assert client.post(path, BODIES[path](**fields)).status == 200
    expected = None if meaning is None else StructuredOutputs(**meaning)
    assert client.engine.calls[0]["params"].structured_outputs == expected


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"guided_regex": "("}, "guided_regex"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_complaint_names_the_field_that_was_sent(path, fields, name, stream):
    if stream and path == GENERATE:
        return
    client = Client(FakeEngine(error=InvalidRequest("no", param="structured_outputs")))
    reply = client.post(path, BODIES[path](**fields, **({"stream": True} if stream else {})))
    assert (reply.status, reply.error["param"]) == (400, name)


def test_other_complaints_keep_their_names():
    client = Client(FakeEngine(error=InvalidRequest("no", param="seed")))
    assert client.post(CHAT, chat(guided_regex="a")).error["param"] == "seed"
