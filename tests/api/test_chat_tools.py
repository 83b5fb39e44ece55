"""Tools and reasoning through /v1/chat/completions: what the model is shown, what callers get, streamed or not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, Reply, TagTemplate, chat
from formats import TEXTS

from octavo.config import EngineConfig
from octavo.errors import InvalidRequest

URL = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
TIME_CALL = {"name": "time", "arguments": "{}"}
TOOLS = [WEATHER, TIME]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'


class NoTools(TagTemplate):
    """Knows no tools, and no system either."""

    source = "{{ messages }}"

    def render(self, messages, **kwargs) -> str:
        assert "tools" not in kwargs
        if messages[0]["role"] == "system":
            raise InvalidRequest("no system", param="messages")
        return super().render(messages, **kwargs)


def client(*texts: str, template: Any = None, **config: Any) -> Client:
    """A client of a model that writes these texts, one a choice."""
    engine = FakeEngine(
        reply=lambda _, index: texts[index % len(texts)], max_model_len=8192, config=EngineConfig.of(**config)
    )
    engine.chat_template = template or TagTemplate()
    return Client(engine)


def streamed(reply: Reply) -> list[dict[str, Any]]:
    """A stream's chunks, put together as the messages of the answer in one piece."""
    *events, done = reply.events
    assert done == "[DONE]"
    messages: dict[int, dict[str, Any]] = {}
    for choice in (choice for event in events for choice in event["choices"]):
        message = messages.setdefault(choice["index"], {"content": "", "tokens": []})
        delta = choice["delta"]
        assert len(delta.keys() - {"role", "reasoning_content"}) <= 1
        for key in ("content", "reasoning", "reasoning_content"):
            if key in delta:
                message[key] = message.get(key, "") + delta[key]
        for call in delta.get("tool_calls", []):
            fold_call(message.setdefault("tool_calls", []), call)
        if "function_call" in delta:
            new = delta["function_call"]
            old = message.setdefault("function_call", {"name": new.get("name"), "arguments": ""})
            old["arguments"] += new["arguments"]
        message["finish_reason"] = choice["finish_reason"] or message.get("finish_reason")
        message["tokens"] += (choice["logprobs"] or {}).get("content", [])
    return [messages[index] for index in sorted(messages)]


def fold_call(calls: list[dict[str, Any]], new: dict[str, Any]) -> None:
    if "id" in new:
        assert new["index"] == len(calls)
        calls.append({"id": new["id"], "type": new["type"], "function": {**new["function"], "arguments": ""}})
    calls[new["index"]]["function"]["arguments"] += new["function"]["arguments"]


def answer(client: Client, **fields: Any) -> list[dict[str, Any]]:
    """The messages of an answer, which a stream must say too."""
    whole = client.post(URL, chat(**fields))
    assert whole.status == 200, whole.body
    messages = [
        {
            **choice["message"],
            "finish_reason": choice["finish_reason"],
            "tokens": (choice["logprobs"] or {}).get("content", []),
        }
        for choice in whole.json["choices"]
    ]
    parts = streamed(client.post(URL, chat(stream=True, **fields)))
    for message, part in zip(messages, parts, strict=True):
        expected = {key: value for key, value in message.items() if key not in ("role", "refusal")}
        for call in (*expected.get("tool_calls", []), *part.get("tool_calls", [])):
            assert call["id"].startswith("call_")
            del call["id"]  # they come from the request's own
        assert part == {**expected, "content": expected["content"] or ""}
    return messages


@pytest.mark.parametrize("name", TEXTS)
def test_calls_in_every_format(name: str) -> None:
    (message,) = answer(client(TEXTS[name], tool_call_parser=name), tools=TOOLS)
    assert message["content"] == (None if name == "llama3_json" else "Let me see.")
    assert message["finish_reason"] == "tool_calls"
    called = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]
    assert called == [("weather", {"city": "Köln", "days": 2}), ("time", {})]
    assert {call["type"] for call in message["tool_calls"]} == {"function"}


def test_choices_have_calls_of_their_own_and_every_tokens_logprob() -> None:
    texts = (CALL, "No call.", "Both." + CALL)
    messages = answer(client(*texts), tools=TOOLS, n=3, logprobs=True, top_logprobs=1)
    assert [message["finish_reason"] for message in messages] == ["tool_calls", "stop", "tool_calls"]
    assert [message["content"] for message in messages] == [None, "No call.", "Both."]
    assert [len(message["tokens"]) for message in messages] == [len(text.encode()) for text in texts]


def test_ids_of_calls_are_unlike_and_stay_the_same() -> None:
    reply = client(CALL + CALL).post(URL, chat(tools=TOOLS, n=2))
    ids = [call["id"] for choice in reply.json["choices"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 4


def test_only_one_call_where_only_one_may_be() -> None:
    text = CALL + "Then. " + CALL.replace("weather", "time")
    (message,) = answer(client(text), tools=TOOLS, parallel_tool_calls=False)
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"]
    assert message["content"] == "Then."


def test_an_answer_cut_off_in_a_call_has_its_beginning() -> None:
    (message,) = answer(client(CALL), tools=TOOLS, max_tokens=len('<tool_call>{"name": "weather", "arguments": {"ci'))
    assert message["finish_reason"] == "length"
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"ci'}


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}])
def test_without_tools_a_call_is_text(fields: dict[str, Any]) -> None:
    (message,) = answer(client(CALL), **fields)
    assert (message["content"], message["finish_reason"]) == (CALL, "stop")
    assert "tool_calls" not in message


def test_functions_are_tools_of_old() -> None:
    server = client(CALL + CALL)
    functions = [tool["function"] for tool in TOOLS]
    (message,) = answer(server, functions=functions, function_call="auto")
    assert message["function_call"] == {"name": "weather", "arguments": '{"city": "Köln"}'}
    assert message["finish_reason"] == "function_call"
    assert "tool_calls" not in message
    past = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "function_call": message["function_call"]},
        {"role": "function", "name": "weather", "content": "sunny"},
    ]
    assert server.post(URL, {"model": "fake-model", "messages": past}).status == 200
    assert b"<tool>sunny" in bytes(server.engine.calls[-1]["prompt"])


# ---------------------------------------------------------------------- what the model is shown


def test_the_template_gets_the_tools() -> None:
    server = client("ok")
    server.post(URL, chat(tools=[{**WEATHER, "function": {**WEATHER["function"], "strict": True}}, TIME]))
    empty = {"type": "object", "properties": {}}
    time = {"type": "function", "function": {"name": "time", "description": "", "parameters": empty}}
    assert f"[tools={[WEATHER, time]}]".encode() in bytes(server.engine.calls[0]["prompt"])


def test_a_template_without_tools_is_told_in_words() -> None:
    server = client("ok", template=NoTools())
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Sure.", "tool_calls": [{"id": "1", "function": TIME_CALL}]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
        {"role": "tool", "tool_call_id": "2", "content": "night"},
        {"role": "user", "content": "And?"},
    ]  # fmt: skip
    assert server.post(URL, {"model": "fake-model", "messages": messages, "tools": TOOLS}).status == 200
    prompt = bytes(server.engine.calls[0]["prompt"]).decode()
    assert prompt.startswith("<user>Be brief.\n\nYou can call functions")
    assert '{"name": "weather", "description": "of a city", "parameters"' in prompt
    assert prompt.endswith(
        '<assistant>Sure.\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call><user><tool_response>\nnoon\n'
        "</tool_response>\n\n<tool_response>\nnight\n</tool_response>\n\nAnd?<assistant>"
    )


def test_a_template_that_leaves_the_tools_out_is_told_in_words() -> None:
    class Forgetful(TagTemplate):
        source = "{{ tools }} <function="  # the sign of another format

        def render(self, messages, *, tools=(), **kwargs) -> str:
            return super().render(messages, **kwargs)

    server = client(CALL, template=Forgetful())
    (message,) = answer(server, tools=TOOLS)
    assert b"<tools>" in bytes(server.engine.calls[0]["prompt"])
    assert message["tool_calls"][0]["function"]["name"] == "weather"


def test_tokenize_shows_the_tools_too() -> None:
    server = client("ok")
    server.post(URL, chat(tools=TOOLS))
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS}
    assert server.post("/tokenize", body).json["tokens"] == server.engine.calls[0]["prompt"]
    reply = server.post("/tokenize", {**body, "tools": [{"type": "custom"}]})
    assert (reply.status, reply.error["param"]) == (400, "tools[0].type")


@pytest.mark.parametrize("type_", [{}, [{}], [None, 1], 5])
@pytest.mark.parametrize("schema", [lambda it: {"type": it}, lambda it: {"anyOf": [{"type": it}, 3]}])
def test_schemas_that_are_none_break_no_parser(type_: Any, schema: Any) -> None:
    tool = {"name": "time", "parameters": {"properties": {"a": schema(type_)}}}
    text = "<function=time><parameter=a>1</parameter></function>"
    (message,) = answer(client(text, tool_call_parser="qwen3_coder"), tools=[{"type": "function", "function": tool}])
    assert message["tool_calls"][0]["function"] == {"name": "time", "arguments": '{"a": 1}'}


def test_results_are_named_after_their_calls() -> None:
    class Naming(TagTemplate):
        def render(self, messages, **kwargs) -> str:
            return "".join(f"{message['role']}:{message.get('name')} " for message in messages)

    server = client("ok", template=Naming())
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": TIME_CALL}]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
        {"role": "tool", "tool_call_id": "2", "content": "?"},
    ]
    server.post(URL, {"model": "fake-model", "messages": messages})
    assert bytes(server.engine.calls[0]["prompt"]) == b"user:None assistant:None tool:time tool:None "


def test_ids_and_arguments_take_the_form_that_a_template_accepts() -> None:
    class Picky(TagTemplate):
        source = "{{ tools }} {{ tool_calls }} ids have length 9!"

        def render(self, messages, **kwargs) -> str:
            call = messages[1]["tool_calls"][0]
            if not isinstance(call["function"]["arguments"], str):
                raise InvalidRequest("can only concatenate texts", param="messages")
            assert call["id"] == messages[2]["tool_call_id"]
            assert len(call["id"]) == 9
            return super().render(messages, **kwargs)

    call = {"id": "call_1234567890", "function": {"name": "time", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1234567890", "content": "noon"},
    ]
    assert client("ok", template=Picky()).post(URL, {"model": "fake-model", "messages": messages}).status == 200


# ---------------------------------------------------------------------- reasoning


class Thinking(TagTemplate):
    """Opens the reasoning in the prompt, or closes it at once."""

    def render(self, messages, *, enable_thinking=True, **kwargs) -> str:
        return super().render(messages, **kwargs) + ("<think>\n" if enable_thinking else "<think>\n\n</think>\n\n")


def test_reasoning_has_fields_of_its_own_and_its_tokens_are_counted() -> None:
    text = "<think>\nHm, hm.\n</think>\n\nYes. "
    server = client(text)
    (message,) = answer(server)
    assert message["reasoning"] == message["reasoning_content"] == "Hm, hm."
    assert message["content"] == "Yes. "
    usage = server.post(URL, chat()).json["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len("\nHm, hm.\n")}
    options = {"include_usage": True, "continuous_usage_stats": True}
    *events, _ = server.post(URL, chat(stream=True, stream_options=options)).events
    assert events[-1]["usage"] == usage


def test_reasoning_that_the_prompt_has_opened() -> None:
    (message,) = answer(client("Hm.</think>Yes.", template=Thinking()))
    assert (message["reasoning"], message["content"]) == ("Hm.", "Yes.")
    (message,) = answer(client("Yes.", template=Thinking()), chat_template_kwargs={"enable_thinking": False})
    assert ("reasoning" in message, message["content"]) == (False, "Yes.")
    (message,) = answer(client("Yes.", template=Thinking()), reasoning_effort="none")
    assert message["content"] == "Yes."


def test_reasoning_never_closed_is_all_there_is() -> None:
    (message,) = answer(client("Hm. Hm", template=Thinking()))
    assert (message["reasoning"], message["content"], message["finish_reason"]) == ("Hm. Hm", "", "stop")


def test_reasoning_then_a_call() -> None:
    (message,) = answer(client(f"<think>Hm.</think>\n{CALL}"), tools=TOOLS)
    assert (message["reasoning"], message["content"]) == ("Hm.", None)
    assert message["tool_calls"][0]["function"]["name"] == "weather"


def test_reasoning_may_be_left_out_or_left_alone() -> None:
    text = "<think>Hm.</think>Yes."
    (message,) = answer(client(text), include_reasoning=False)
    assert ("reasoning" in message, message["content"]) == (False, "Yes.")
    (message,) = answer(client(text, reasoning_parser="none"))
    assert message["content"] == text


def test_words_about_reasoning_are_content() -> None:
    (message,) = answer(client("Write <think> first."), messages=[{"role": "user", "content": "What opens <think>"}])
    assert message["content"] == "Write <think> first."


def test_a_message_is_continued_within_its_reasoning() -> None:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<think>Hm"}]
    (message,) = answer(client(", hm.</think>Yes."), messages=messages, continue_final_message=True)
    assert (message["reasoning"], message["content"]) == (", hm.", "Yes.")


def test_past_reasoning_and_effort_reach_the_template() -> None:
    seen: dict[str, Any] = {}

    class Watching(TagTemplate):
        source = "{{ documents }} {{ tool_calls }}"

        def render(self, messages, **kwargs) -> str:
            seen.update(kwargs, messages=messages)
            return "x"

    messages = [{"role": "assistant", "content": "a", "reasoning_content": "b"}, {"role": "user", "content": "c"}]
    server = client("ok", template=Watching())
    server.post(URL, chat(messages=messages, reasoning_effort="high", documents=[{"text": "d"}]))
    assert seen["messages"][0]["reasoning_content"] == seen["messages"][0]["thinking"] == "b"
    assert (seen["reasoning_effort"], seen["documents"]) == ("high", [{"text": "d"}])
    reply = client("ok").post(URL, chat(documents=[{"text": "d"}]))
    assert (reply.status, reply.error["param"]) == (400, "documents")


# ---------------------------------------------------------------------- mistakes

BAD: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ({"tools": [TIME, {"type": "function"}]}, "tools[1].function"),
    ({"tools": [TIME, TIME]}, "tools[1].function.name"),
    ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"function": {"name": ""}}]}, "tools[0].function.name"),
    ({"tools": [{"function": {"name": "x" * 129}}]}, "tools[0].function.name"),
    ({"tools": [{"function": {"name": "a", "parameters": {"type": "string"}}}]}, "tools[0].function.parameters"),
    ({"tools": [{"function": {"name": "a", "parameters": [1]}}]}, "tools[0].function.parameters"),
    ({"tools": [{"function": {"name": f"a{i}"}} for i in range(129)]}, "tools"),
    ({"tools": [{"function": {"name": "a", "description": "x" * 2**18}}]}, "tools"),
    ({"tools": TOOLS, "functions": [{"name": "a"}]}, "functions"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice.function.name"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type"),
    (
        {
            "tools": TOOLS,
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "nope"}}]},
            },
        },
        "tool_choice.allowed_tools.tools[0].function.name",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": [1]}}}]},
        "tools[0].function.parameters",
    ),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "time"}}}, "tool_choice"),
    ({"functions": [{"name": "a"}], "function_call": {"name": "b"}}, "function_call.name"),
    ({"function_call": {"name": "b"}}, "function_call"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=[param for _, param in BAD])
def test_what_is_wrong_with_tools_is_named(fields: dict[str, Any], param: str) -> None:
    server = client("ok")
    reply = server.post(URL, chat(**fields))
    assert (reply.status, reply.error["param"]) == (400, param)
    assert not server.engine.calls


def test_what_only_openai_needs_is_accepted_quietly(caplog: pytest.LogCaptureFixture) -> None:
    fields = {
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "reasoning_effort": "low",
        "parallel_tool_calls": True,
        "include_reasoning": True,
    }
    assert client("ok").post(URL, chat(**fields)).status == 200
    assert "ignored" not in caplog.text
