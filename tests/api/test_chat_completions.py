"""/v1/chat/completions against a scripted engine: what goes in, what comes out, and that a stream says the same."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, TagTemplate, chat

from octavo.request import BeamSearchParams

URL = "/v1/chat/completions"


def folded(events: list[Any]) -> dict[int, dict[str, Any]]:
    """A stream's chunks put together as its non-streamed choices."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for part in event["choices"]:
            choice = choices.setdefault(part["index"], {"content": "", "logprobs": None, "finish_reason": None})
            choice.setdefault("role", part["delta"].get("role"))
            choice["content"] += part["delta"].get("content", "")
            if part["logprobs"] is not None:
                choice["logprobs"] = {**part["logprobs"], "content": [*(choice["logprobs"] or {}).get("content", [])]}
                choice["logprobs"]["content"] += part["logprobs"]["content"]
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
            choice["stop_reason"] = part.get("stop_reason", choice.get("stop_reason"))
            choice["token_ids"] = choice.get("token_ids", []) + part.get("token_ids", [])
    return choices


def test_an_answer_has_the_shape_of_openais() -> None:
    client = Client()
    reply = client.post(URL, chat())
    assert reply.status == 200
    assert reply.header("content-type") == "application/json"
    answer = reply.json
    assert answer["id"] == f"chatcmpl-{reply.header('x-request-id')}"
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "fake-model"
    assert answer["system_fingerprint"].startswith("fp_")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, wörld! 0", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": "<end>",
        }
    ]
    prompt = len("<user>Hi<assistant>")
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 16,
        "total_tokens": prompt + 16,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_a_stream_begins_with_the_role_and_ends_with_reason_usage_and_done() -> None:
    reply = Client().post(URL, chat(stream=True, stream_options={"include_usage": True}))
    assert reply.header("content-type") == "text/event-stream; charset=utf-8"
    *events, done = reply.events
    assert done == "[DONE]"
    assert reply.complete
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({(event["id"], event["created"], event["system_fingerprint"]) for event in events}) == 1
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-2]["choices"][0]["delta"] == {}
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 16
    assert all(event["usage"] is None for event in events[:-1])
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-2])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3},
        {"max_tokens": 5},
        {"max_completion_tokens": 3, "max_tokens": 9},
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 3, "n": 2},
        {"return_token_ids": True},
        {"use_beam_search": True, "n": 2, "max_tokens": 4, "length_penalty": 0.5},
    ],
)
def test_a_stream_says_what_the_whole_answer_says(fields: dict[str, Any]) -> None:
    whole = Client().post(URL, chat(**fields)).json
    *events, _ = Client().post(URL, chat(stream=True, **fields)).events
    choices = folded(events)
    assert len(choices) == len(whole["choices"]) == fields.get("n", 1)
    for choice in whole["choices"]:
        streamed = choices[choice["index"]]
        assert streamed["content"] == choice["message"]["content"]
        assert streamed["role"] == choice["message"]["role"]
        assert streamed["logprobs"] == choice["logprobs"]
        assert streamed["finish_reason"] == choice["finish_reason"]
        assert streamed["stop_reason"] == choice["stop_reason"]
        assert streamed["token_ids"] == choice.get("token_ids", [])
    if "return_token_ids" in fields:
        assert events[0]["prompt_token_ids"] == whole["prompt_token_ids"] == list(b"<user>Hi<assistant>")


def test_logprobs_hold_the_chosen_token_and_the_best_in_order() -> None:
    reply = Client().post(URL, chat(logprobs=True, top_logprobs=2, max_tokens=1)).json
    (token,) = reply["choices"][0]["logprobs"]["content"]
    assert (token["token"], token["logprob"], token["bytes"]) == ("H", -0.5, [72])
    assert [(entry["token"], entry["logprob"]) for entry in token["top_logprobs"]] == [("a", -0.125), ("H", -0.5)]


def test_continuous_usage_counts_up() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *events, _ = Client().post(URL, chat(stream=True, stream_options=options)).events
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 16


def test_prompt_logprobs_stand_beside_the_choices() -> None:
    reply = Client().post(URL, chat(prompt_logprobs=1)).json
    assert reply["prompt_logprobs"][0] is None
    assert reply["prompt_logprobs"][1] == {
        "117": {"logprob": -1.0, "rank": 2, "decoded_token": None},
        "118": {"logprob": -0.125, "rank": 1, "decoded_token": "a"},
    }
    *events, _ = Client().post(URL, chat(prompt_logprobs=1, stream=True, n=2)).events
    assert events[0]["prompt_logprobs"] == reply["prompt_logprobs"]
    assert sum("prompt_logprobs" in event for event in events) == 1


def test_fields_reach_the_engine() -> None:
    client = Client()
    fields = {
        "n": 2,
        "seed": -5,
        "temperature": 1,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.5,
        "logit_bias": {"7": 2},
        "allowed_token_ids": [1, 2],
        "bad_words": ["no"],
        "stop": "end",
        "stop_token_ids": [9],
        "ignore_eos": True,
        "min_tokens": 2,
        "include_stop_str_in_output": True,
        "prompt_logprobs": 1,
        "skip_special_tokens": False,
    }
    client.post(URL, chat(**fields, max_tokens=11, logprobs=True, top_logprobs=4, priority=-3, cache_salt="s"))
    (call,) = client.engine.calls
    params = call["params"]
    expected = {**fields, "stop": ["end"], "logit_bias": {7: 2.0}, "max_tokens": 11, "logprobs": 4}
    assert {name: getattr(params, name) for name in expected} == expected
    assert (call["priority"], call["cache_salt"]) == (-3, "s")


def test_what_is_left_out_comes_from_the_model_then_from_openai() -> None:
    client = Client(FakeEngine(default_sampling={"temperature": 0.6, "top_k": 20}))
    client.post(URL, chat())
    client.post(URL, chat(temperature=0, top_k=0))
    first, second = (call["params"] for call in client.engine.calls)
    assert (first.temperature, first.top_k, first.top_p, first.max_tokens) == (0.6, 20, 1.0, None)
    assert (second.temperature, second.top_k) == (0.0, 0)


def test_beam_search() -> None:
    client = Client()
    client.post(URL, chat(use_beam_search=True, n=3, length_penalty=0.5, ignore_eos=True))
    prompt = len("<user>Hi<assistant>")
    assert client.engine.calls[0]["params"] == BeamSearchParams(
        beam_width=3, max_tokens=128 - prompt, length_penalty=0.5, ignore_eos=True
    )


def test_messages_become_the_prompt() -> None:
    client = Client()
    messages = [
        {"role": "developer", "content": "be brief", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "{{7*7}}"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "not json"}}]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    reply = client.post(URL, {"model": "fake-model", "messages": messages, "chat_template_kwargs": {"x": 1}})
    assert reply.status == 200
    assert (
        bytes(client.engine.calls[0]["prompt"])
        == b"<system>be brief<user>{{7*7}}\nb<assistant><tool>42[x=1]<assistant>"
    )


def test_continue_final_message() -> None:
    client = Client()
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    client.post(URL, {"model": "fake-model", "messages": messages, "continue_final_message": True})
    assert bytes(client.engine.calls[0]["prompt"]) == b"<user>a<assistant>b"


def test_served_names() -> None:
    from octavo.config import EngineConfig

    client = Client(FakeEngine(config=EngineConfig.of(served_model_name=("a", "b/c"))))
    assert client.post(URL, {**chat(), "model": "b/c"}).json["model"] == "b/c"
    assert client.post(URL, chat()).status == 404
    cards = client.get("/v1/models").json["data"]
    assert [(card["id"], card["root"], card["max_model_len"]) for card in cards] == [
        ("a", "fake-model", 128),
        ("b/c", "fake-model", 128),
    ]
    assert client.get("/v1/models/b/c").json["id"] == "b/c"
    assert client.get("/v1/models/d").error["code"] == "model_not_found"


@pytest.mark.parametrize(("path", "body"), [(URL, chat()), ("/tokenize", {"messages": chat()["messages"]})])
def test_templates_run_off_the_event_loop(path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(TagTemplate, "render", lambda *_, **__: threads.append(threading.get_ident()) or "x")
    assert Client().post(path, body).status == 200
    assert threads
    assert threading.get_ident() not in threads
