"""Anthropic's Messages API, checked with Anthropic's own client and its types."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from fake_engine import Client, FakeEngine
from fake_server import run, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from octavo.api.limits import TOKENIZED_CHARACTERS
from octavo.errors import RequestFailed

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
EVENT = TypeAdapter(RawMessageStreamEvent)


def ask(content: Any = "Hi", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "fake-model", "max_tokens": 100, "messages": messages, **fields}


def text(value: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **fields}


def events(body: bytes) -> list[dict[str, Any]]:
    """A stream's events, each of which must be called what it is."""
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == ""
    found = []
    for block in blocks:
        first, second = block.split("\n")
        event = json.loads(second.removeprefix("data: "))
        assert first == f"event: {event['type']}"
        found.append(event)
    return found


def prompt(body: dict[str, Any]) -> str:
    """What the model is shown."""
    client = Client(FakeEngine(max_model_len=10_000))
    reply = client.post(PATH, body)
    assert reply.status == 200, reply.body
    return bytes(client.engine.calls[0]["prompt"]).decode()


def test_an_answer_is_what_anthropics_client_expects() -> None:
    reply = Client().post(PATH, ask())
    assert reply.status == 200
    message = Message.model_validate(reply.json)
    assert [block.to_dict() for block in message.content] == [
        {"type": "text", "text": "Hello, wörld! 0", "citations": None}
    ]
    assert (message.stop_reason, message.stop_sequence, message.model) == ("end_turn", None, "fake-model")
    assert message.id.startswith("msg_")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (15, 4, 16)


def test_a_stream_has_the_events_that_anthropics_client_expects() -> None:
    reply = Client().post(PATH, ask(stream=True))
    assert reply.header("content-type") == "text/event-stream; charset=utf-8"
    said = events(reply.body)
    assert reply.complete
    for event in said:
        assert event["type"] == "ping" or EVENT.validate_python(event)
    kinds = [event["type"] for event in said if event["type"] != "content_block_delta"]
    assert kinds == [
        "message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert said[0]["message"]["content"] == []
    assert said[0]["message"]["stop_reason"] is None


@pytest.mark.parametrize(
    ("fields", "reason", "sequence"),
    [
        ({}, "end_turn", None),
        ({"max_tokens": 3}, "max_tokens", None),
        ({"stop_sequences": ["x", "<end>"]}, "stop_sequence", "<end>"),
        ({"stop_sequences": ["x"]}, "end_turn", None),
    ],
)
def test_why_it_ended(fields: dict[str, Any], reason: str, sequence: str | None) -> None:
    whole = Client().post(PATH, ask(**fields)).json
    last = events(Client().post(PATH, ask(**fields, stream=True)).body)[-2]
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    assert last["delta"] == {"stop_reason": reason, "stop_sequence": sequence}
    assert last["usage"] == whole["usage"]


def test_max_tokens_may_exceed_the_context() -> None:
    client = Client(FakeEngine(max_model_len=30, reply=lambda *_: "x" * 100))
    reply = client.post(PATH, ask(max_tokens=32_000))
    assert (reply.status, reply.json["stop_reason"]) == (200, "model_context_window_exceeded")
    assert client.engine.calls[0]["params"].max_tokens == 32_000


@pytest.mark.parametrize("system", ["Be brief.", [text("Be", cache_control={"type": "ephemeral"}), text("brief.")]])
def test_what_the_model_is_shown(system: Any) -> None:
    shown = prompt(
        ask(
            system=system,
            messages=[
                {"role": "user", "content": [text("One"), text("Two")]},
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "Hm", "signature": ""}, text("Three")],
                },
                {"role": "user", "content": "Four"},
            ],
        )
    )
    brief = "Be brief." if isinstance(system, str) else "Be\nbrief."
    assert shown == f"<system>{brief}<user>One\nTwo<assistant>Three<user>Four<assistant>"


def test_an_answer_that_was_begun_is_continued() -> None:
    messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two,"}]
    assert prompt(ask(messages=messages)) == "<user>Count<assistant>One, two,"


def test_sampling_fields_reach_the_engine() -> None:
    client = Client()
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop_sequences": [str(i) for i in range(9)]}
    assert client.post(PATH, ask(**fields, max_tokens=5, metadata={"user_id": "u"}, service_tier="auto")).status == 200
    params = client.engine.calls[0]["params"]
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.9, 7, 5)
    assert params.stop == fields["stop_sequences"]


def test_tokens_are_counted_without_an_answer() -> None:
    client = Client()
    body = ask(system="Be brief.")
    del body["max_tokens"]
    reply = client.post(COUNT, body)
    assert (reply.status, reply.json) == (200, {"input_tokens": len("<system>Be brief.<user>Hi<assistant>")})
    assert client.engine.calls == []


BAD = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"temperature": -1}, "temperature"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
    ({"tools": [{"name": "search", "type": "web_search_20250305"}]}, "tools"),
]


@pytest.mark.parametrize(("fields", "field"), BAD)
def test_mistakes_are_named(fields: dict[str, Any], field: str) -> None:
    body = {name: value for name, value in ask(**fields).items() if value is not None}
    client = Client()
    reply = client.post(PATH, body)
    assert reply.status == 400
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert f"'{field}" in reply.json["error"]["message"]
    assert client.engine.calls == []


ANYTHING = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just([]) | st.just({})
BLOCK: Any = st.deferred(
    lambda: st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "thinking", "redacted_thinking", "tool_use", "tool_result", "image", ""])},
        optional={
            "text": st.text(max_size=9) | ANYTHING,
            "thinking": st.text(max_size=9) | ANYTHING,
            "id": st.text(max_size=9) | ANYTHING,
            "name": st.text(max_size=9) | ANYTHING,
            "input": st.dictionaries(st.text(max_size=3), ANYTHING, max_size=2) | ANYTHING,
            "tool_use_id": st.text(max_size=9) | ANYTHING,
            "content": st.lists(BLOCK, max_size=2) | ANYTHING,
            "is_error": ANYTHING,
            "cache_control": ANYTHING,
        },
    )
)
CONTENT = st.text(max_size=9) | st.lists(BLOCK, max_size=4) | ANYTHING
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": CONTENT}), max_size=4
)


@settings(max_examples=100, deadline=None)
@given(messages=MESSAGES, system=CONTENT)
def test_whatever_the_blocks_it_is_an_answer_or_the_callers_mistake(messages: Any, system: Any) -> None:
    reply = Client(FakeEngine(max_model_len=10_000)).post(PATH, ask(messages=messages, system=system, max_tokens=1))
    assert reply.status in (200, 400), reply.body
    if reply.status == 400:
        assert reply.json["error"]["message"]
    else:
        Message.model_validate(reply.json)


# ---------------------------------------------------------------------- with Anthropic's client


def client(port: int) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{port}", api_key="k", max_retries=0)


def test_what_exceeds_the_context_is_counted_and_not_answered() -> None:
    client = Client(FakeEngine(max_model_len=20))
    messages = [{"role": "user", "content": "x" * 1000}]
    assert client.post(COUNT, {"model": "fake-model", "messages": messages}).json == {"input_tokens": 1017}
    assert client.post(PATH, {"model": "fake-model", "messages": messages, "max_tokens": 5}).status == 400
    messages = [{"role": "user", "content": "x" * (TOKENIZED_CHARACTERS + 1)}]
    assert client.post(COUNT, {"model": "fake-model", "messages": messages}).status == 400


def test_anthropics_client_asks_streams_and_counts() -> None:
    async def scenario() -> None:
        async with serving(api_key=("k",)) as (_, port), client(port) as api:
            whole = await api.messages.create(**ask())
            async with api.messages.stream(**ask()) as stream:
                pieces = [piece async for piece in stream.text_stream]
                final = await stream.get_final_message()
            assert "".join(pieces) == "Hello, wörld! 0"
            assert len(pieces) > 5
            said = Message.model_validate(final.to_dict())
            assert said.model_dump(exclude={"id"}) == whole.model_dump(exclude={"id"})
            counted = await api.messages.count_tokens(model="fake-model", messages=ask()["messages"])
            assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
            with pytest.raises(anthropic.NotFoundError, match="does not exist"):
                await api.messages.create(**{**ask(), "model": "other"})
            with pytest.raises(anthropic.BadRequestError, match="temperature"):
                await api.messages.create(**ask(), extra_body={"temperature": -1})
        async with serving(api_key=("another",)) as (_, port), client(port) as api:
            with pytest.raises(anthropic.AuthenticationError):
                await api.messages.create(**ask())

    run(scenario)


def test_a_stream_that_fails_raises_in_anthropics_client() -> None:
    async def scenario() -> None:
        engine = FakeEngine(error=RequestFailed("broke"), fail_after=3)
        async with serving(engine) as (_, port), client(port) as api:
            pieces: list[str] = []

            async def consume() -> None:
                async with api.messages.stream(**ask()) as stream:
                    async for piece in stream.text_stream:
                        pieces.extend([piece])

            with pytest.raises(anthropic.APIStatusError, match="broke"):
                await consume()
            assert "".join(pieces) == "Hel"

    run(scenario)
