"""/v1/completions against a scripted engine."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fake_engine import BOS, Client, FakeEngine, completion

from octavo.api.openai.logprobs import completion_logprobs
from octavo.errors import RequestFailed
from octavo.request import Logprob

URL = "/v1/completions"


def folded(events: list[Any]) -> dict[int, dict[str, Any]]:
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for part in event["choices"]:
            choice = choices.setdefault(part["index"], dict(part, text="", logprobs=None, token_ids=[]))
            choice["text"] += part["text"]
            choice["finish_reason"] = part["finish_reason"] or choice["finish_reason"]
            choice["stop_reason"] = choice["stop_reason"] if part["stop_reason"] is None else part["stop_reason"]
            choice["token_ids"] += part.get("token_ids", [])
            if part["logprobs"] is not None:
                old = choice["logprobs"] or {name: [] for name in part["logprobs"]}
                choice["logprobs"] = {name: old[name] + values for name, values in part["logprobs"].items()}
    return choices


def test_an_answer_has_the_shape_of_openais() -> None:
    reply = Client().post(URL, completion())
    assert reply.status == 200
    assert reply.json["id"] == f"cmpl-{reply.header('x-request-id')}"
    assert reply.json["object"] == "text_completion"
    assert reply.json["choices"] == [
        {"index": 0, "text": "Hello, wörld! 0", "logprobs": None, "finish_reason": "stop", "stop_reason": "<end>"}
    ]
    assert reply.json["usage"]["prompt_tokens"] == 5
    assert reply.json["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": ["One", "Two", "Three"]},
        {"prompt": ["One", "Two"], "n": 2},
        {"prompt": [72, 105]},
        {"prompt": [[72, 105], [73]]},
        {"max_tokens": 4},
        {"logprobs": 0},
        {"logprobs": 2, "n": 2},
        {"echo": True},
        {"echo": True, "prompt": [72, 105], "n": 2},
        {"echo": True, "logprobs": 2, "prompt": ["One", "Two"]},
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"prompt_logprobs": 1},
        {"return_token_ids": True},
        {"use_beam_search": True, "n": 2},
    ],
)
def test_a_stream_says_what_the_whole_answer_says(fields: dict[str, Any]) -> None:
    whole = Client().post(URL, completion(**fields))
    streamed = Client().post(URL, completion(stream=True, stream_options={"include_usage": True}, **fields))
    *events, done = streamed.events
    assert done == "[DONE]"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole.json["usage"]
    choices = folded(events)
    assert sorted(choices) == list(range(len(whole.json["choices"])))
    for choice in whole.json["choices"]:
        choice.setdefault("token_ids", [])
        assert choices[choice["index"]] == choice


def test_prompts_and_choices_are_numbered_prompt_by_prompt() -> None:
    client = Client(FakeEngine(reply=lambda prompt, index: f"{bytes(prompt[1:]).decode()}{index}"))
    reply = client.post(URL, completion(["x", "yy"], n=2))
    assert [(choice["index"], choice["text"]) for choice in reply.json["choices"]] == [
        (0, "x0"),
        (1, "x1"),
        (2, "yy0"),
        (3, "yy1"),
    ]
    assert reply.json["usage"]["prompt_tokens"] == 2 + 3
    assert len({call["id"] for call in client.engine.calls}) == 2


def test_prompts_in_every_form() -> None:
    for prompt, expected in [
        ("Hi", [[BOS, 72, 105]]),
        (["Hi"], [[BOS, 72, 105]]),
        ([72, 105], [[72, 105]]),
        ([[72], [105]], [[72], [105]]),
    ]:
        client = Client()
        assert client.post(URL, completion(prompt)).status == 200
        assert [call["prompt"] for call in client.engine.calls] == expected
    client = Client()
    client.post(URL, completion("Hi", add_special_tokens=False))
    assert client.engine.calls[0]["prompt"] == [72, 105]


def test_logprobs_lie_beside_the_text() -> None:
    choice = Client().post(URL, completion(echo=True, logprobs=1, max_tokens=2)).json["choices"][0]
    assert choice["text"] == "OnceHe"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["<s>", "O", "n", "c", "e", "H", "e"]
    assert logprobs["token_logprobs"] == [None, -1.0, -1.0, -1.0, -1.0, -0.5, -0.5]
    assert logprobs["top_logprobs"][:2] == [None, {"O": -1.0, "a": -0.125}]
    assert logprobs["top_logprobs"][5] == {"H": -0.5, "a": -0.125}
    assert logprobs["text_offset"] == [0, 3, 4, 5, 6, 7, 8]


def test_scoring_a_prompt_generates_nothing() -> None:
    client = Client()
    answer = client.post(URL, completion(echo=True, logprobs=0, max_tokens=0)).json
    assert answer["choices"][0]["text"] == "Once"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 5
    assert answer["usage"]["completion_tokens"] == 0
    assert client.engine.calls[0]["params"].max_tokens == 1


def test_impossible_tokens_have_a_finite_logprob() -> None:
    found, _ = completion_logprobs([65], [{65: Logprob(-math.inf, 9)}], 0, FakeEngine().tokenizer)
    assert found.token_logprobs == [-9999.0]


def test_tokens_that_are_parts_of_characters_stay_apart() -> None:
    snow = "☃".encode()
    position = {token: Logprob(-1.0 - rank, rank, "\ufffd") for rank, token in enumerate(snow)}
    found, end = completion_logprobs([*snow, 65], [position] * 3 + [{65: Logprob(-1.0)}], 7, FakeEngine().tokenizer)
    assert found.tokens == ["bytes:\\xe2", "bytes:\\x98", "bytes:\\x83", "A"]
    assert found.top_logprobs[0] == {"bytes:\\xe2": -1.0, "bytes:\\x98": -2.0, "bytes:\\x83": -3.0}
    assert (found.text_offset[0], found.text_offset[3], end) == (7, 8, 9)


def test_text_offsets_point_into_the_text() -> None:
    for fields in ({}, {"prompt": "né", "echo": True, "add_special_tokens": False}):
        choice = Client().post(URL, completion(logprobs=0, **fields)).json["choices"][0]
        logprobs = choice["logprobs"]
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert token.startswith("bytes:") or choice["text"][offset] == token
        assert "bytes:\\xc3" in logprobs["tokens"]  # of ö, in the answer


def test_best_of_keeps_the_likeliest() -> None:
    client = Client()  # choice k has logprob -0.25 k - 0.5 per token: the first is the best
    answer = client.post(URL, completion(best_of=3, n=1)).json
    assert [choice["text"] for choice in answer["choices"]] == ["Hello, wörld! 0"]
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 3 * 16
    worse_first = Client(FakeEngine(reply=lambda _, index: "ab"[: 2 - index]))
    assert worse_first.post(URL, completion(best_of=2)).json["choices"][0]["text"] == "ab"


def test_an_unset_limit_is_cut_to_the_context_and_a_set_one_is_not() -> None:
    client = Client(FakeEngine(max_model_len=10))
    assert client.post(URL, completion("abcd")).status == 200
    assert client.engine.calls[0]["params"].max_tokens == 5
    reply = client.post(URL, completion("abcd", max_tokens=6))
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == ("max_tokens", "context_length_exceeded")


def test_one_failing_prompt_fails_the_request_and_aborts_the_others() -> None:
    def reply(prompt: list[int], index: int) -> str:
        if prompt == [67]:
            raise RequestFailed("broke")
        return "x" * 50

    client = Client(FakeEngine(reply=reply))
    answer = client.post(URL, completion([[65], [66], [67]], max_tokens=50))
    assert answer.status == 500
    assert client.engine.running == set()
    assert len(client.engine.aborted) == len(client.engine.calls) - 1


def test_with_a_suffix_the_middle_is_filled_in() -> None:
    engine = FakeEngine()
    reply = Client(engine).post("/v1/completions", completion(prompt="ab", suffix="yz", stop_token_ids=[7]))
    assert reply.status == 200
    (call,) = engine.calls
    assert call["prompt"] == [256, 290, *b"ab", 291, *b"yz", 292]
    assert call["params"].stop_token_ids == [7, 293]
    assert reply.json["choices"][0]["text"].startswith("Hello")


def test_an_empty_suffix_is_none() -> None:
    engine = FakeEngine()
    Client(engine).post("/v1/completions", completion(prompt="ab", suffix=""))
    assert engine.calls[0]["prompt"] == [256, *b"ab"]
