"""Ollama's API, checked with Ollama's own client and its types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import ollama
import pytest
from fake_engine import ByteTokenizer, Client, FakeEngine
from fake_server import run, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.api.conversation import Part, ToolCallPart
from octavo.api.desk import Tally
from octavo.api.ollama.answer import Clock, Telling, chat_answer
from octavo.api.ollama.request import seconds
from octavo.api.ollama.types import ChatAnswer, CommonFields
from octavo.config import ServerConfig
from octavo.errors import InvalidRequest, RequestFailed

CHAT, GENERATE = "/api/chat", "/api/generate"
DURATIONS = {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}


def chat(content: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": "fake-model", "messages": [{"role": "user", "content": content}], **fields}


def generate(prompt: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": "fake-model", "prompt": prompt, **fields}


def lines(body: bytes) -> list[dict[str, Any]]:
    *found, end = body.split(b"\n")
    assert end == b""
    return [json.loads(line) for line in found]


def steady(answer: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from request to request."""
    assert all(answer[name] >= 0 for name in DURATIONS & answer.keys())
    return {name: value for name, value in answer.items() if name not in {*DURATIONS, "created_at"}}


def folded(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """A stream as the answer in one piece that it is."""
    whole = dict(pieces[-1])
    assert [piece["done"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    logprobs = [entry for piece in pieces for entry in piece.get("logprobs", ())]
    if logprobs:
        whole["logprobs"] = logprobs
    if "response" in whole:
        whole["response"] = "".join(piece["response"] for piece in pieces)
    else:
        messages = [piece["message"] for piece in pieces]
        whole["message"] = {"role": "assistant", "content": "".join(message["content"] for message in messages)}
    return whole


def prompt(path: str, body: dict[str, Any]) -> str:
    """What the model is shown."""
    client = Client(FakeEngine(max_model_len=10_000))
    reply = client.post(path, {**body, "stream": False})
    assert reply.status == 200, reply.body
    return bytes(i for i in client.engine.calls[0]["prompt"] if i < 256).decode()


@pytest.mark.parametrize(
    "fields", [{}, {"options": {"num_predict": 3}}, {"logprobs": True, "top_logprobs": 2}, {"stream": True}]
)
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (GENERATE, generate())])
def test_a_stream_folded_is_the_answer_in_one_piece(path: str, body: dict[str, Any], fields: dict[str, Any]) -> None:
    whole = Client().post(path, {**body, **fields, "stream": False})
    streamed = Client().post(path, {**body, **fields})
    assert whole.header("content-type") == "application/json"
    assert streamed.header("content-type") == "application/x-ndjson"
    assert streamed.complete
    pieces = lines(streamed.body)
    assert len(pieces) > 3
    assert steady(folded(pieces)) == steady(whole.json)
    assert whole.json.keys() & pieces[-1].keys() >= DURATIONS
    assert ("logprobs" in whole.json) == ("logprobs" in fields)
    (ollama.ChatResponse if path == CHAT else ollama.GenerateResponse).model_validate(whole.json)


@pytest.mark.parametrize(
    ("options", "reason"), [({}, "stop"), ({"num_predict": 3}, "length"), ({"num_predict": -1}, "stop")]
)
def test_why_it_ended_and_what_was_counted(options: dict[str, Any], reason: str) -> None:
    answer = Client().post(CHAT, chat(stream=False, options=options)).json
    text = answer["message"]["content"]
    assert answer["done_reason"] == reason
    assert answer["eval_count"] == len(text.encode()) == (3 if reason == "length" else 16)
    assert answer["prompt_eval_count"] == len("<user>Hi<assistant>")


def test_num_predict_may_exceed_the_context_and_num_ctx_may_not() -> None:
    assert Client().post(CHAT, chat(stream=False, options={"num_predict": 10_000, "num_ctx": 128})).status == 200
    reply = Client().post(CHAT, chat(options={"num_ctx": 129}))
    assert (reply.status, "num_ctx" in reply.json["error"]) == (400, True)


def test_options_reach_the_engine() -> None:
    options = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "seed": 5, "stop": ["x"], "num_predict": 9}
    options |= {"repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    renamed = {"repeat_penalty": "repetition_penalty", "num_predict": "max_tokens"}
    for path, body in ((CHAT, chat()), (GENERATE, generate()), (GENERATE, generate(raw=True))):
        client = Client()
        ignored = {"num_gpu": 1, "num_thread": 4, "repeat_last_n": 64, "mirostat": 0, "tfs_z": 1.0}
        assert client.post(path, {**body, "options": {**options, **ignored}}).status == 200
        params = client.engine.calls[0]["params"]
        assert {name: getattr(params, renamed.get(name, name)) for name in options} == options


def test_what_the_model_is_shown() -> None:
    assert prompt(GENERATE, generate(system="Be brief.")) == "<system>Be brief.<user>Hi<assistant>"
    assert prompt(GENERATE, generate(raw=True)) == "Hi"
    client = Client()
    client.engine.chat_template.source = None
    assert client.post(GENERATE, generate()).status == 200
    assert bytes(client.engine.calls[0]["prompt"][1:]) == b"Hi", "a model without a template continues the prompt"
    messages = [{"role": "User", "content": "Count"}, {"role": "assistant", "content": "One, two,"}]
    assert prompt(CHAT, {"model": "fake-model", "messages": messages}) == "<user>Count<assistant>One, two,"


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, {"messages": []}), (CHAT, {}), (GENERATE, {"prompt": ""}), (GENERATE, {})]
)
def test_nothing_to_say_loads_the_model(path: str, body: dict[str, Any]) -> None:
    client = Client()
    reply = client.post(path, {"model": "fake-model", **body})
    assert (reply.status, reply.json["done"], reply.json["done_reason"]) == (200, True, "load")
    assert client.engine.calls == []
    assert client.post(path, {"model": "other", **body}).status == 404


@pytest.mark.parametrize(("path", "keep_alive"), [(CHAT, 0), (GENERATE, "0s")])
def test_nothing_to_say_and_no_time_to_stay_unloads_the_model(path: str, keep_alive: Any) -> None:
    client = Client()
    reply = client.post(path, {"model": "fake-model:latest", "keep_alive": keep_alive})
    assert (reply.status, reply.json["done_reason"]) == (200, "unload")
    assert client.models.unloaded == ["fake-model"]
    assert client.post(path, {"model": "fake-model", "keep_alive": "5 minutes"}).status == 400


def test_where_admins_have_a_port_of_their_own_nobody_unloads_on_the_other() -> None:
    client = Client(config=ServerConfig(admin_port=0))
    reply = client.post(CHAT, {"model": "fake-model", "keep_alive": 0})
    assert (reply.status, client.models.unloaded) == (403, [])
    assert client.post(CHAT, {"model": "fake-model"}).json["done_reason"] == "load"


def test_arguments_that_are_no_object_are_told_in_their_place() -> None:
    """Before what is said after them, however the answer was cut into parts."""

    async def parts() -> AsyncIterator[Part]:
        yield Part(index=0, tool_calls=[ToolCallPart(index=0, id="call_1", name="f", arguments="[1")])
        yield Part(index=0, content=" and on", finish_reason="stop")

    async def scenario() -> str:
        call: Any = SimpleNamespace(tally=Tally())
        request = CommonFields(model="m")
        telling = Telling(call, request, parts(), ByteTokenizer(), chat_answer, Clock())
        answer = await telling.whole()
        assert isinstance(answer, ChatAnswer)
        return answer.message.content

    assert asyncio.run(scenario()) == "[1 and on"


def test_plain_curl_is_understood() -> None:
    """Which calls every body a form; browsers that would do so say whose page it is, and are refused by that."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert Client().post(CHAT, chat(), headers=headers).status == 200
    assert Client().post(CHAT, chat(), headers={**headers, "origin": "http://elsewhere.example"}).status == 403


def test_the_latest_tag_is_the_same_model() -> None:
    answer = Client().post(CHAT, chat(model="fake-model:latest", stream=False)).json
    assert answer["model"] == "fake-model:latest"
    assert Client().post("/api/show", {"model": "fake-model:latest"}).status == 200


BAD = [
    (CHAT, {"model": None}, "model", 400),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role", 400),
    (CHAT, {"messages": [{"role": "root", "content": "x"}]}, "messages[0].role", 400),
    (CHAT, {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images", 400),
    (CHAT, {"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content", 400),
    (CHAT, {"options": {"temperature": -1}}, "options.temperature", 400),
    (CHAT, {"options": {"mirostat": 2}}, "options.mirostat", 400),
    (CHAT, {"think": "sometimes"}, "think", 400),
    (CHAT, {"format": "xml"}, "format", 400),
    (GENERATE, {"template": "{{ .Prompt }}"}, "template", 400),
    (GENERATE, {"images": ["aGk="]}, "images", 400),
    (GENERATE, {"context": [1, 2]}, "context", 400),
    (GENERATE, {"raw": True, "system": "x"}, "system", 400),
    (GENERATE, {"prompt": "x" * 200}, "", 400),
    (GENERATE, {"model": "other"}, "other", 404),
    ("/api/show", {"model": "other"}, "other", 404),
    ("/api/show", {"model": None}, "model", 400),
    ("/api/embed", {"model": "other", "input": "x"}, "other", 404),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "named", "status"), BAD)
def test_mistakes_are_named(path: str, fields: dict[str, Any], named: str, status: int) -> None:
    body = {**(chat() if path == CHAT else generate() if path == GENERATE else {}), **fields}
    client = Client()
    reply = client.post(path, {name: value for name, value in body.items() if value is not None})
    assert reply.status == status
    assert reply.json.keys() == {"error"}
    assert named in reply.json["error"]
    assert client.engine.calls == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (5, 5.0),
        (-1, -1.0),
        ("0", 0.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("-1m", -60.0),
        ("250ms", 0.25),
    ],
)
def test_durations(text: Any, wanted: float) -> None:
    assert seconds(text) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "5x", "1h-30m", "five", "5mm"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidRequest):
        seconds(text)


ANYTHING = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just([]) | st.just({})
CALL = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": st.text(max_size=5)}, optional={"arguments": ANYTHING}) | ANYTHING},
    optional={"id": ANYTHING},
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "TOOL", ""]) | ANYTHING},
    optional={
        "content": st.text(max_size=9) | ANYTHING,
        "thinking": st.text(max_size=9) | ANYTHING,
        "tool_calls": st.lists(CALL, max_size=2) | ANYTHING,
        "tool_name": st.text(max_size=9) | ANYTHING,
        "tool_call_id": ANYTHING,
        "images": ANYTHING,
    },
)


@settings(max_examples=100, deadline=None)
@given(messages=st.lists(MESSAGE, max_size=4) | ANYTHING, think=ANYTHING, keep_alive=ANYTHING)
def test_whatever_the_messages_it_is_an_answer_or_a_mistake(messages: Any, think: Any, keep_alive: Any) -> None:
    body = {"model": "fake-model", "messages": messages, "think": think, "keep_alive": keep_alive, "stream": False}
    reply = Client(FakeEngine(max_model_len=10_000)).post(CHAT, {**body, "options": {"num_predict": 1}})
    assert reply.status in (200, 400), reply.body
    if reply.status == 400:
        assert reply.json["error"]
    else:
        ollama.ChatResponse.model_validate(reply.json)


# ---------------------------------------------------------------------- with Ollama's client


@asynccontextmanager
async def client(port: int) -> AsyncIterator[ollama.AsyncClient]:
    api = ollama.AsyncClient(host=f"http://127.0.0.1:{port}")
    try:
        yield api
    finally:
        await api.close()


def test_ollamas_client_does_everything() -> None:
    async def scenario() -> None:
        async with serving() as (_, port), client(port) as api:
            said = await api.chat(**chat())
            assert said.message.content == "Hello, wörld! 0"
            pieces = [piece.message.content or "" async for piece in await api.chat(**chat(), stream=True)]
            assert "".join(pieces) == said.message.content
            assert len(pieces) > 5
            written = await api.generate(**generate(), options={"num_predict": 3})
            assert (written.response, written.done_reason, written.eval_count) == ("Hel", "length", 3)
            parts = [part.response async for part in await api.generate(**generate(), stream=True)]
            assert "".join(parts) == "Hello, wörld! 0"
            assert [model.model for model in (await api.list()).models] == ["fake-model"]
            assert [model.model for model in (await api.ps()).models] == ["fake-model"]
            assert "completion" in ((await api.show("fake-model")).capabilities or ())
            assert len((await api.embed(model="fake-model", input=["a", "b"])).embeddings) == 2
            assert len((await api.embeddings(model="fake-model", prompt="a")).embedding) > 0
            with pytest.raises(ollama.ResponseError, match="does not exist") as caught:
                await api.chat(**chat(model="other"))
            assert caught.value.status_code == 404

    run(scenario)


def test_a_stream_that_fails_raises_in_ollamas_client() -> None:
    async def scenario() -> None:
        engine = FakeEngine(error=RequestFailed("broke"), fail_after=3)
        async with serving(engine) as (_, port), client(port) as api:
            pieces: list[Any] = []

            async def consume() -> None:
                async for piece in await api.chat(**chat(), stream=True):
                    pieces.extend([piece.message.content])

            with pytest.raises(ollama.ResponseError, match="broke"):
                await consume()
            assert "".join(pieces) == "Hel"

    run(scenario)
