"""OpenAI's Responses API, checked with OpenAI's own client and its types."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from fake_engine import Client, FakeEngine
from fake_server import run, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from octavo.errors import RequestFailed

PATH = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
VOLATILE = {"id", "created_at", "completed_at", "item_id"}


def ask(input: Any = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": "fake-model", "input": input, **fields}


def user(content: Any = "Hi") -> dict[str, Any]:
    return {"role": "user", "content": content}


def events(body: bytes) -> list[dict[str, Any]]:
    """A stream's events, numbered without gaps, each called what it is and valid for OpenAI's client."""
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == ""
    found = []
    for number, block in enumerate(blocks):
        first, second = block.split("\n")
        event = json.loads(second.removeprefix("data: "))
        assert first == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENT.validate_python(event)
        found.append(event)
    return found


def steady(value: Any) -> Any:
    """Without what differs from request to request."""
    if isinstance(value, dict):
        return {name: steady(item) for name, item in value.items() if name not in VOLATILE}
    return [steady(item) for item in value] if isinstance(value, list) else value


def prompt(body: dict[str, Any]) -> str:
    """What the model is shown."""
    client = Client(FakeEngine(max_model_len=10_000))
    reply = client.post(PATH, body)
    assert reply.status == 200, reply.body
    return bytes(client.engine.calls[0]["prompt"]).decode()


def test_an_answer_is_what_openais_client_expects() -> None:
    reply = Client().post(PATH, ask(metadata={"a": "b"}, user="u", store=True, top_p=0.5))
    response = Response.model_validate(reply.json)
    assert response.output_text == "Hello, wörld! 0"
    assert (response.status, response.model, response.metadata) == ("completed", "fake-model", {"a": "b"})
    assert (response.temperature, response.top_p, response.user) == (1.0, 0.5, "u")
    assert reply.json["store"] is False, "nothing is kept"
    usage = response.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (19, 16, 35)
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (4, 0)


def test_a_stream_has_openais_events_in_openais_order() -> None:
    reply = Client().post(PATH, ask(stream=True))
    assert reply.complete
    said = events(reply.body)
    kinds = [event["type"] for event in said]
    begin = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    end = ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]
    assert kinds[:4] == begin
    assert kinds[-4:] == end
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert "".join(event["delta"] for event in said[4:-4]) == said[-4]["text"] == "Hello, wörld! 0"
    assert [event["response"]["status"] for event in said if "response" in event] == [
        "in_progress", "in_progress", "completed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_output_tokens": 3},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
        {"instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0.5, "reasoning": {"effort": "low"}},
    ],
)
def test_a_stream_ends_with_what_the_answer_in_one_piece_is(fields: dict[str, Any]) -> None:
    whole = Client().post(PATH, ask(**fields)).json
    said = events(Client().post(PATH, ask(**fields, stream=True)).body)
    assert steady(said[-1]["response"]) == steady(whole)
    done = [event["item"] for event in said if event["type"] == "response.output_item.done"]
    assert steady(done) == steady(whole["output"])
    logprobs = [entry for event in said if event["type"] == "response.output_text.delta" for entry in event["logprobs"]]
    assert logprobs == whole["output"][0]["content"][0]["logprobs"]
    assert bool(logprobs) == ("include" in fields)


def test_an_answer_that_is_cut_is_incomplete() -> None:
    body = Client().post(PATH, ask(max_output_tokens=3)).json
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"
    said = events(Client().post(PATH, ask(max_output_tokens=3, stream=True)).body)
    assert said[-1]["type"] == "response.incomplete"


def test_what_the_model_is_shown() -> None:
    items = [
        user([{"type": "input_text", "text": "One"}, {"type": "input_text", "text": "Two"}]),
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
         "content": [{"type": "output_text", "text": "Three", "annotations": []}]},
        {"role": "developer", "content": "Four"},
        user("Five"),
    ]  # fmt: skip
    shown = "<system>Be brief.<user>One\nTwo<assistant>Three<system>Four<user>Five<assistant>"
    assert prompt(ask(items, instructions="Be brief.")) == shown
    assert prompt(ask("Hi")) == "<user>Hi<assistant>"


BAD = [
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": []}, "input", "empty_array"),
    ({"input": [user(None)]}, "input[0].content", "missing_required_parameter"),
    ({"input": [{"content": "x"}]}, "input[0].role", "missing_required_parameter"),
    ({"input": [user([{"type": "input_image", "image_url": "x"}])]}, "input[0].content[0].type", "invalid_value"),
    ({"input": [user([{"type": "input_text"}])]}, "input[0].content[0].text", "missing_required_parameter"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "invalid_value"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type", "invalid_value"),
    ({"input": [user(), {"type": "function_call", "name": "f"}]}, "input[1].arguments", "missing_required_parameter"),
    ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input[0].output", "missing_required_parameter"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
    ({"conversation": {"id": "x"}}, "conversation", "unsupported_parameter"),
    ({"background": True}, "background", "unsupported_parameter"),
    ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
    ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
    ({"max_output_tokens": 1000}, "max_output_tokens", "context_length_exceeded"),
    ({"input": "x" * 200}, "input", "context_length_exceeded"),
    ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"metadata": {"x": "y" * 513}}, "metadata", "string_above_max_length"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
]


@pytest.mark.parametrize(("fields", "param", "code"), BAD)
def test_mistakes_are_named(fields: dict[str, Any], param: str, code: str) -> None:
    body = {name: value for name, value in ask(**fields).items() if value is not None}
    client = Client()
    reply = client.post(PATH, body)
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == (param, code)
    assert client.engine.calls == []


def test_false_and_null_are_no_mistakes() -> None:
    fields = {"background": False, "previous_response_id": None, "conversation": None, "truncation": "disabled"}
    assert Client().post(PATH, ask(**fields)).status == 200


def test_what_is_told_again_can_be_told_however_deep_it_is() -> None:
    body = b'{"model":"fake-model","input":"x","stream":true,"tools":[{"type":"function","name":"f","parameters":%b}]}'
    for depth in range(940, 1000):
        schema = b'{"a":' * depth + b"{}" + b"}" * depth
        reply = Client(FakeEngine(max_model_len=100_000)).post(PATH, body % schema)
        assert reply.status == 400 or reply.complete, depth


ANYTHING = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just([]) | st.just({})
TYPES = ["message", "reasoning", "function_call", "function_call_output", "item_reference", "input_text",
         "output_text", "summary_text", "refusal", "input_image", ""]  # fmt: skip
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES)},
    optional={"text": st.text(max_size=9) | ANYTHING, "refusal": st.text(max_size=9) | ANYTHING},
)
CONTENT = st.text(max_size=9) | st.lists(PART, max_size=3) | ANYTHING
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(TYPES),
        "role": st.sampled_from(["user", "assistant", "system", "developer"]) | ANYTHING,
        "content": CONTENT,
        "summary": CONTENT,
        "output": CONTENT,
        "call_id": st.text(max_size=9) | ANYTHING,
        "name": st.text(max_size=9) | ANYTHING,
        "arguments": st.sampled_from(["{}", '{"a": 1}', "{", "[]", ""]) | ANYTHING,
        "id": ANYTHING,
        "status": ANYTHING,
    },
)


@settings(max_examples=100, deadline=None)
@given(items=st.lists(ITEM, max_size=5) | ANYTHING)
def test_whatever_the_items_it_is_an_answer_or_the_callers_mistake(items: Any) -> None:
    reply = Client(FakeEngine(max_model_len=10_000)).post(PATH, ask(items, max_output_tokens=1))
    assert reply.status in (200, 400), reply.body
    if reply.status == 400:
        assert reply.error["message"]
    else:
        Response.model_validate(reply.json)


# ---------------------------------------------------------------------- with OpenAI's client


def client(port: int) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0)


def test_openais_client_creates_and_streams() -> None:
    async def scenario() -> None:
        async with serving(api_key=("k",)) as (_, port), client(port) as api:
            whole = await api.responses.create(**ask())
            assert whole.output_text == "Hello, wörld! 0"
            async with api.responses.stream(**ask()) as stream:
                pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
                final = await stream.get_final_response()
            assert "".join(pieces) == final.output_text == whole.output_text
            assert len(pieces) > 5
            assert final.usage == whole.usage
            raw = await api.responses.create(**ask(), stream=True)
            assert [event.type async for event in raw][-1] == "response.completed"
            with pytest.raises(openai.BadRequestError) as caught:
                await api.responses.create(**ask(), previous_response_id="resp_1")
            assert caught.value.param == "previous_response_id"

    run(scenario)


def test_a_stream_that_fails_says_so_and_raises_in_openais_client() -> None:
    async def scenario() -> None:
        engine = FakeEngine(error=RequestFailed("broke"), fail_after=3)
        async with serving(engine) as (_, port), client(port) as api:
            seen: list[Any] = []

            async def consume() -> None:
                async for event in await api.responses.create(**ask(), stream=True):
                    seen.extend([event])

            with pytest.raises(openai.APIError, match="broke"):
                await consume()
            last = seen[-1]
            assert (last.type, last.response.status) == ("response.failed", "failed")
            assert last.response.error.message == "broke"
            assert last.response.output_text == "Hel"

    run(scenario)
