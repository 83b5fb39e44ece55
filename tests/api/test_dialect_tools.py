"""Tools and reasoning are the same in every dialect: what the model is shown, and what is made of what it writes."""

from __future__ import annotations

import json
from typing import Any

import anthropic.types
import msgspec
import ollama
import openai.types.responses
import pytest
from fake_engine import Client, FakeEngine, TagTemplate
from pydantic import TypeAdapter

from octavo.api.anthropic import request as messages
from octavo.api.anthropic.types import MessagesRequest
from octavo.api.openai.tools import tool_use
from octavo.api.openai.types import ChatRequest
from octavo.api.responses import request as responses
from octavo.api.responses.types import ResponsesRequest
from octavo.config import EngineConfig

ASSISTANT, RESPONSES, MESSAGES, OLLAMA = "/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"
DIALECTS = [RESPONSES, MESSAGES, OLLAMA]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
CALLS = [("weather", {"city": "Köln"}), ("time", {})]
CALLED = "".join(
    f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>" for name, arguments in CALLS
)
EVERYTHING = f"<think>Let me see.</think>I look it up.\n{CALLED}"


class JsonTemplate(TagTemplate):
    """Shows all that it is given."""

    def render(self, messages, **kwargs) -> str:
        return json.dumps({"messages": messages, **kwargs}, sort_keys=True)


def client(text: str) -> Client:
    config = EngineConfig.of(tool_call_parser="hermes", reasoning_parser="qwen3")
    engine = FakeEngine(reply=lambda *_: text, max_model_len=100_000, config=config)
    engine.chat_template = JsonTemplate()
    return Client(engine)


def tools(path: str) -> list[dict[str, Any]]:
    named: list[dict[str, Any]] = [{"name": "weather", "description": "of a city"}, {"name": "time"}]
    if path == MESSAGES:
        return [{**tool, "input_schema": SCHEMA} for tool in named]
    functions = [{**tool, "parameters": SCHEMA} for tool in named]
    if path == RESPONSES:
        return [{"type": "function", "strict": None, **function} for function in functions]
    return [{"type": "function", "function": function} for function in functions]


def ask(path: str, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "fake-model", "tools": tools(path)}
    body |= {"input": "Hi"} if path == RESPONSES else {"messages": [{"role": "user", "content": "Hi"}]}
    body |= {"max_tokens": 1000} if path == MESSAGES else {}
    return {**body, **fields}


def whole(path: str, text: str, **fields: Any) -> dict[str, Any]:
    reply = client(text).post(path, ask(path, **fields, stream=False))
    assert reply.status == 200, reply.body
    return reply.json


def events(path: str, text: str, **fields: Any) -> list[dict[str, Any]]:
    reply = client(text).post(path, ask(path, **fields, stream=True))
    assert reply.complete
    lines = [line.removeprefix("data: ") for line in reply.body.decode().split("\n")]
    return [json.loads(line) for line in lines if line.startswith("{")]


def shown(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the chat template is given."""
    asked = client("x")
    reply = asked.post(path, body)
    assert reply.status == 200, reply.body
    return json.loads(bytes(asked.engine.calls[0]["prompt"]))


# ---- what is answered ----


def test_responses_has_an_item_for_each() -> None:
    response = openai.types.responses.Response.model_validate(whole(RESPONSES, EVERYTHING))
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    reasoning, message, *calls = (item.to_dict() for item in response.output)
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert message["content"][0]["text"].strip() == "I look it up."  # type: ignore[index]
    assert [(call["name"], json.loads(str(call["arguments"]))) for call in calls] == CALLS
    assert len({call["call_id"] for call in calls}) == 2
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens >= len("Let me see.")


def test_responses_streams_what_it_answers() -> None:
    said = events(RESPONSES, EVERYTHING)
    valid: TypeAdapter[Any] = TypeAdapter(openai.types.responses.ResponseStreamEvent)
    for event in said:
        valid.validate_python(event)
    final = said[-1]["response"]
    done = [event["item"] for event in said if event["type"] == "response.output_item.done"]
    assert done == final["output"]
    pieces: dict[int, str] = {}
    for event in said:
        if event["type"].endswith(".delta"):
            pieces[event["output_index"]] = pieces.get(event["output_index"], "") + event["delta"]
    texts = [item.get("arguments") or item["content"][0]["text"] for item in final["output"]]
    assert list(pieces.values()) == texts
    for kind, count in (("output_item.added", 4), ("reasoning_text.done", 1), ("output_text.done", 1),
                        ("function_call_arguments.done", 2), ("content_part.added", 2)):  # fmt: skip
        assert sum(event["type"] == f"response.{kind}" for event in said) == count
    answer = whole(RESPONSES, EVERYTHING)["output"]
    assert [item["type"] for item in final["output"]] == [item["type"] for item in answer]
    assert texts == [item.get("arguments") or item["content"][0]["text"] for item in answer]


def test_messages_has_a_block_for_each() -> None:
    message = anthropic.types.Message.model_validate(whole(MESSAGES, EVERYTHING))
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    thinking, text, *calls = (block.to_dict() for block in message.content)
    assert (thinking["thinking"], str(text["text"]).strip()) == ("Let me see.", "I look it up.")
    assert [(call["name"], call["input"]) for call in calls] == CALLS
    assert message.stop_reason == "tool_use"


def test_messages_streams_what_it_answers() -> None:
    blocks: list[dict[str, Any]] = []
    valid: TypeAdapter[Any] = TypeAdapter(anthropic.types.RawMessageStreamEvent)
    for event in events(MESSAGES, EVERYTHING):
        if event["type"] != "ping":
            valid.validate_python(event)
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                (name, piece) = next((k, v) for k, v in event["delta"].items() if k != "type")
                blocks[event["index"]]["json" if name == "partial_json" else name] += piece
    for block in blocks:
        written = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(written)
    answer = whole(MESSAGES, EVERYTHING)["content"]
    assert [{**block, "id": None} for block in blocks] == [{**block, "id": None} for block in answer]


def test_ollama_tells_calls_when_they_are_complete() -> None:
    answer = ollama.ChatResponse.model_validate(whole(OLLAMA, EVERYTHING))
    assert (answer.message.thinking, (answer.message.content or "").strip()) == ("Let me see.", "I look it up.")
    assert [(call.function.name, call.function.arguments) for call in answer.message.tool_calls or ()] == CALLS
    assert answer.done_reason == "stop"
    said = [event["message"] for event in events(OLLAMA, EVERYTHING)]
    assert "".join(message.get("thinking", "") for message in said) == answer.message.thinking
    assert "".join(message["content"] for message in said) == answer.message.content
    calls = [call["function"] for message in said for call in message.get("tool_calls", ())]
    assert [(call["index"], call["name"], call["arguments"]) for call in calls] == [
        (index, *call) for index, call in enumerate(CALLS)
    ]


def test_a_call_that_is_cut_off_is_no_object() -> None:
    limit = EVERYTHING.index('"K') + 2
    message = whole(MESSAGES, EVERYTHING, max_tokens=limit)
    assert message["stop_reason"] == "max_tokens"
    assert message["content"][-1] == {**message["content"][-1], "type": "tool_use", "input": {}}
    item = whole(RESPONSES, EVERYTHING, max_output_tokens=limit)["output"][-1]
    assert (item["type"], item["status"]) == ("function_call", "incomplete")
    told = whole(OLLAMA, EVERYTHING, options={"num_predict": limit})
    assert "tool_calls" not in told["message"]
    assert "K" in told["message"]["content"]


# ---- what is asked ----

RESULT = "12 degrees"


def conversation(path: str) -> dict[str, Any]:
    """The same one in each dialect: a question, what was thought, said and called, and the results."""
    one, two = ({"id": f"call_{i}", "name": name, "arguments": arguments} for i, (name, arguments) in enumerate(CALLS))
    match path:
        case "/v1/responses":
            calls = [
                {"type": "function_call", "call_id": call["id"], "name": call["name"],
                 "arguments": json.dumps(call["arguments"])} for call in (one, two)
            ]  # fmt: skip
            results = [{"type": "function_call_output", "call_id": call["id"], "output": RESULT} for call in (one, two)]
            said = [
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [],
                    "content": [{"type": "reasoning_text", "text": "Hm."}],
                },
                {"role": "assistant", "content": [{"type": "output_text", "text": "I look it up."}]},
            ]
            return ask(path, input=[{"role": "user", "content": "Hi"}, *said, *calls, *results])
        case "/v1/messages":
            said = [{"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": "I look it up."}]
            uses = [
                {"type": "tool_use", "id": call["id"], "name": call["name"], "input": call["arguments"]}
                for call in (one, two)
            ]
            outcomes = [
                {"type": "tool_result", "tool_use_id": one["id"], "content": RESULT},
                {"type": "tool_result", "tool_use_id": two["id"], "content": [{"type": "text", "text": RESULT}]},
            ]
            messages = [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": [*said, *uses]},
                {"role": "user", "content": outcomes},
            ]
            return ask(path, messages=messages)
    functions = [{"function": {"name": call["name"], "arguments": call["arguments"]}} for call in (one, two)]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "I look it up.", "thinking": "Hm.", "tool_calls": functions},
        *({"role": "tool", "tool_name": call["name"], "content": RESULT} for call in (one, two)),
    ]
    return ask(path, messages=messages)


def test_the_model_is_shown_the_same_whoever_asks() -> None:
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for i, (name, arguments) in enumerate(CALLS)
    ]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "I look it up.", "reasoning": "Hm.", "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": RESULT} for call in calls),
    ]
    wanted = shown(ASSISTANT, {"model": "fake-model", "messages": messages, "tools": tools(ASSISTANT)})
    assert wanted["tools"]
    for path in DIALECTS:
        assert shown(path, conversation(path)) == wanted, path


@pytest.mark.parametrize(
    ("path", "choice", "openai_choice"),
    [
        (RESPONSES, "required", "required"),
        (RESPONSES, {"type": "function", "name": "time"}, {"type": "function", "function": {"name": "time"}}),
        (
            RESPONSES,
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]},
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]},
            },
        ),
        (MESSAGES, {"type": "auto"}, "auto"),
        (MESSAGES, {"type": "any"}, "required"),
        (MESSAGES, {"type": "none"}, "none"),
        (MESSAGES, {"type": "tool", "name": "time"}, {"type": "function", "function": {"name": "time"}}),
    ],
)
def test_a_choice_of_tools_means_what_openais_means(path: str, choice: Any, openai_choice: Any) -> None:
    body = ask(path, tool_choice=choice)
    if path == RESPONSES:
        asked = responses.chat_request(msgspec.convert(body, ResponsesRequest))
    else:
        asked = messages.chat_request(msgspec.convert(body, MessagesRequest))
    assert tool_use(asked) == tool_use(msgspec.convert(ask(ASSISTANT, tool_choice=openai_choice), ChatRequest))


def test_one_call_at_a_time() -> None:
    for path, fields in (
        (RESPONSES, {"parallel_tool_calls": False}),
        (MESSAGES, {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
    ):
        answer = whole(path, EVERYTHING, **fields)
        said = answer["output"] if path == RESPONSES else answer["content"]
        assert sum(item["type"] in ("function_call", "tool_use") for item in said) == 1


BAD = [
    (RESPONSES, {"tools": [{"type": "web_search"}]}, "tools[0].type"),
    (RESPONSES, {"tools": [{"type": "function"}]}, "tools[0].name"),
    (RESPONSES, {"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    (RESPONSES, {"tools": [{"type": "function", "name": "a", "parameters": {"type": "array"}}]}, "tools[0].parameters"),
    (RESPONSES, {"tool_choice": {"type": "function", "name": "none"}}, "tool_choice.name"),
    (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    (MESSAGES, {"tools": [{"name": "a", "type": "web_search_20250305"}]}, "tools[0].type"),
    (MESSAGES, {"tools": [{"name": "a"}]}, "tools[0].input_schema"),
    (MESSAGES, {"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
    (MESSAGES, {"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
    (MESSAGES, {"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    (MESSAGES, {"tool_choice": {"type": "tool", "name": "none"}}, "tool_choice.name"),
    (OLLAMA, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
]


@pytest.mark.parametrize(("path", "fields", "param"), BAD)
def test_mistakes_are_named(path: str, fields: dict[str, Any], param: str) -> None:
    reply = client("x").post(path, ask(path, **fields))
    assert reply.status == 400
    assert f"'{param}'" in str(reply.json["error"])


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
        (OLLAMA, {"format": SCHEMA}),
        ("/api/generate", {"format": SCHEMA, "prompt": "Hi"}),
        ("/api/generate", {"format": SCHEMA, "prompt": "Hi", "raw": True}),
    ],
)
def test_a_schema_reaches_the_engine(path: str, fields: dict[str, Any]) -> None:
    tried = client("{}")
    body = {**ask(path), **fields}
    del body["tools"]
    assert tried.post(path, body).status == 200
    structured = tried.engine.calls[0]["params"].structured_outputs
    assert structured is not None
    assert structured.json == SCHEMA


@pytest.mark.parametrize(
    ("path", "fields", "wanted"),
    [
        (RESPONSES, {"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
        (MESSAGES, {"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"enable_thinking": True}),
        (MESSAGES, {"output_config": {"effort": "high"}}, {"reasoning_effort": "high"}),
        (OLLAMA, {"think": False}, {"enable_thinking": False}),
        (OLLAMA, {"think": True}, {"enable_thinking": True}),
        (OLLAMA, {"think": "low"}, {"enable_thinking": True, "reasoning_effort": "low"}),
    ],
)
def test_how_much_to_think_reaches_the_template(path: str, fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    seen = shown(path, ask(path, **fields))
    assert {name: seen[name] for name in wanted} == wanted
