"""Every mistake a body can hold is a 400 with the field's path, never a 422 or 500."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from fake_engine import Client, FakeEngine, chat, completion
from msgspec import NODEFAULT, Struct, UnsetType
from msgspec.structs import fields

from octavo.api.desk import IgnoredFields
from octavo.api.generate import GenerateRequest
from octavo.api.limits import Limits
from octavo.api.openai.types import CHAT_UNSUPPORTED, ChatRequest, CompletionRequest
from octavo.api.responses.types import ResponsesRequest
from octavo.api.tokens import DetokenizeRequest, TokenizeRequest

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
ENDPOINTS: dict[str, tuple[type[Struct], dict[str, Any]]] = {
    CHAT: (ChatRequest, chat()),
    COMPLETION: (CompletionRequest, completion()),
    "/generate": (GenerateRequest, {"prompt": "Once"}),
    "/tokenize": (TokenizeRequest, {"prompt": "Once"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [72]}),
    "/v1/responses": (ResponsesRequest, {"model": "fake-model", "input": "Hi"}),
}
JSON_VALUES: dict[str, Any] = {
    "null": None,
    "bool": True,
    "int": 1,
    "float": 1.5,
    "str": "text",
    "array": [[[]]],
    "object": {"x": {}},
}
REQUIRED = object()


def json_types(hint: Any) -> set[str]:
    """The JSON types that a field's annotation takes."""
    origin = get_origin(hint)
    if origin is Annotated:
        return json_types(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return set().union(*(json_types(member) for member in get_args(hint)))
    if origin is Literal:
        return {"str"}
    if origin in (list, dict):
        return {"array" if origin is list else "object"}
    if hint is UnsetType:
        return set()
    if hint is float:
        return {"float", "int"}
    if isinstance(hint, type) and issubclass(hint, Struct):
        return {"object"}
    return {{type(None): "null"}.get(hint, hint.__name__)}


def wrong_values() -> Iterator[Any]:
    for path, (shape, body) in ENDPOINTS.items():
        hints = get_type_hints(shape, include_extras=True)
        for name, hint in hints.items():
            for kind, value in JSON_VALUES.items():
                if kind not in json_types(hint):
                    yield pytest.param(path, {**body, name: value}, name, id=f"{path}-{name}-{kind}")


@pytest.mark.parametrize(("path", "body", "param"), list(wrong_values()))
def test_a_wrong_type_names_its_field(path: str, body: dict[str, Any], param: str) -> None:
    client = Client()
    reply = client.post(path, body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["code"] == "invalid_type"
    assert reply.error["param"] == param
    assert param in reply.error["message"]
    assert client.engine.calls == []


@pytest.mark.parametrize(("path", "shape_and_body"), list(ENDPOINTS.items()))
def test_a_missing_field_is_named(path: str, shape_and_body: tuple[type[Struct], dict[str, Any]]) -> None:
    shape, body = shape_and_body
    for item in fields(shape):
        if item.default is NODEFAULT and item.default_factory is NODEFAULT:
            reply = Client().post(path, {name: value for name, value in body.items() if name != item.name})
            assert reply.status == 400
            assert (reply.error["param"], reply.error["code"]) == (item.name, "missing_required_parameter")


def test_who_forgets_the_model_is_told_which_there_are() -> None:
    message = Client().post("/v1/embeddings", {"input": "a"}).error["message"]
    assert message == "Missing required parameter: 'model'. Here it may be fake-model."


def test_null_means_left_out() -> None:
    for path, (shape, body) in ENDPOINTS.items():
        optional = {item.name: None for item in fields(shape) if item.name not in body}
        assert Client().post(path, {**optional, **body}).status == 200


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


LONG = "x" * 2000
KWARGS = "chat_template_kwargs"
BAD_VALUES = [
    (CHAT, {"messages": []}, "messages", "empty_array"),
    (CHAT, {"messages": [1]}, "messages[0]", "invalid_type"),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    (CHAT, {"messages": [{"role": "root", "content": "x"}]}, "messages[0].role", "invalid_value"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    (CHAT, {"messages": [{"role": "assistant"}]}, "messages[0].content", "missing_required_parameter"),
    (CHAT, user(None), "messages[0].content", "invalid_type"),
    (CHAT, user(1), "messages[0].content", "invalid_type"),
    (CHAT, user([]), "messages[0].content", "empty_array"),
    (CHAT, user(["x"]), "messages[0].content[0]", "invalid_type"),
    (CHAT, user([{}]), "messages[0].content[0].type", "missing_required_parameter"),
    (CHAT, user([{"type": "text"}]), "messages[0].content[0].text", "missing_required_parameter"),
    (CHAT, user([{"type": "image_url", "image_url": "file:///x"}]), "messages[0].content[0].type", "invalid_value"),
    (CHAT, {KWARGS: {"chat_template": "x"}}, "chat_template_kwargs.chat_template", "unsupported_parameter"),
    (CHAT, {KWARGS: {"tokenize": True}}, "chat_template_kwargs.tokenize", "unsupported_parameter"),
    (CHAT, {"chat_template_kwargs": {"x": LONG}}, "chat_template_kwargs", "string_above_max_length"),
    (CHAT, {"chat_template_kwargs": {"x": [1]}}, "chat_template_kwargs", "invalid_type"),
    (CHAT, {"chat_template_kwargs": {"fail": True}}, "messages", None),
    (CHAT, user("x" * 200), "messages", "context_length_exceeded"),
    (CHAT, {"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message", "invalid_value"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    (CHAT, {"tool_choice": "required"}, "tool_choice", "invalid_value"),
    (CHAT, {"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
     "response_format.json_schema.schema", "missing_required_parameter"),
    (CHAT, {"response_format": {"type": "regex"}}, "response_format.regex", "missing_required_parameter"),
    (CHAT, {"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "invalid_value"),
    (CHAT, {"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "invalid_value"),
    (CHAT, {"structured_outputs": {}}, "structured_outputs", "invalid_value"),
    (CHAT, {"guided_choice": []}, "guided_choice", "empty_array"),
    (CHAT, {"guided_json": 1}, "guided_json", "invalid_type"),
    (CHAT, {"guided_regex": "a", "use_beam_search": True}, "use_beam_search", "unsupported_parameter"),
    (COMPLETION, {"guided_grammar": 1}, "guided_grammar", "invalid_type"),
    (CHAT, {"response_format": {}}, "response_format.type", "missing_required_parameter"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    (CHAT, {"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
    (CHAT, {"n": 0}, "n", "integer_below_min_value"),
    (CHAT, {"n": -1}, "n", "integer_below_min_value"),
    (CHAT, {"n": 129}, "n", "integer_above_max_value"),
    (CHAT, {"n": 2**31}, "n", "integer_above_max_value"),
    (CHAT, {"n": 2**63}, "n", "integer_above_max_value"),
    (CHAT, {"n": 10**4000}, "n", "integer_above_max_value"),
    (CHAT, {"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    (CHAT, {"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
    (CHAT, {"max_tokens": 2**31}, "max_tokens", "integer_above_max_value"),
    (CHAT, {"max_tokens": 1000}, "max_tokens", "context_length_exceeded"),
    (CHAT, {"max_completion_tokens": 1000}, "max_completion_tokens", "context_length_exceeded"),
    (CHAT, {"min_tokens": 10**9}, "min_tokens", "integer_above_max_value"),
    (CHAT, {"min_tokens": 3, "max_tokens": 2}, "min_tokens", "invalid_value"),
    (CHAT, {"top_p": 0}, "top_p", "decimal_below_min_value"),
    (CHAT, {"top_p": -1}, "top_p", "decimal_below_min_value"),
    (CHAT, {"top_p": 1.1}, "top_p", "decimal_above_max_value"),
    (CHAT, {"min_p": 2}, "min_p", "decimal_above_max_value"),
    (CHAT, {"top_k": -5}, "top_k", "integer_below_min_value"),
    (CHAT, {"top_k": 2**63}, "top_k", "integer_above_max_value"),
    (CHAT, {"temperature": -0.1}, "temperature", "decimal_below_min_value"),
    (CHAT, {"temperature": 1e300}, "temperature", "decimal_above_max_value"),
    (CHAT, {"presence_penalty": 2.1}, "presence_penalty", "decimal_above_max_value"),
    (CHAT, {"frequency_penalty": -2.1}, "frequency_penalty", "decimal_below_min_value"),
    (CHAT, {"repetition_penalty": 0}, "repetition_penalty", "decimal_below_min_value"),
    (CHAT, {"repetition_penalty": -1}, "repetition_penalty", "decimal_below_min_value"),
    (CHAT, {"seed": 2**64}, "seed", "integer_above_max_value"),
    (CHAT, {"stop": ["a"] * 5}, "stop", "array_above_max_length"),
    (CHAT, {"stop": ""}, "stop", "invalid_value"),
    (CHAT, {"stop": [""]}, "stop[0]", "invalid_value"),
    (CHAT, {"stop": LONG}, "stop", "string_above_max_length"),
    (CHAT, {"stop_token_ids": [-1]}, "stop_token_ids[0]", "integer_below_min_value"),
    (CHAT, {"stop_token_ids": [2**31]}, "stop_token_ids[0]", "integer_above_max_value"),
    (CHAT, {"bad_words": [""]}, "bad_words[0]", "invalid_value"),
    (CHAT, {"allowed_token_ids": []}, "allowed_token_ids", "empty_array"),
    (CHAT, {"logit_bias": {"x": 1}}, "logit_bias", "invalid_type"),
    (CHAT, {"logit_bias": {"-1": 1}}, "logit_bias", "integer_below_min_value"),
    (CHAT, {"logit_bias": {"1": 101}}, "logit_bias", "decimal_above_max_value"),
    (CHAT, {"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "object_above_max_length"),
    (CHAT, {"cache_salt": "x" * 257}, "cache_salt", "string_above_max_length"),
    (CHAT, {"cache_salt": ""}, "cache_salt", "invalid_value"),
    (CHAT, {"timeout": 0}, "timeout", "decimal_below_min_value"),
    (CHAT, {"timeout": 1e9}, "timeout", "decimal_above_max_value"),
    ("/generate", {"timeout": -1}, "timeout", "decimal_below_min_value"),
    (CHAT, {"priority": 2**31}, "priority", "integer_above_max_value"),
    (CHAT, {"kv_transfer_params": {"a": 1}}, "kv_transfer_params", "unsupported_parameter"),
    (CHAT, {"use_beam_search": True, "stop": "x"}, "stop", "unsupported_parameter"),
    (CHAT, {"use_beam_search": True, "logprobs": True}, "logprobs", "unsupported_parameter"),
    (CHAT, {"length_penalty": 1.0}, "length_penalty", "invalid_value"),
    (CHAT, {"model": "x" * 10**6}, "model", "model_not_found"),
    (CHAT, {"model": ""}, "model", "model_not_found"),
    (CHAT, {"model": "../../etc/passwd\0"}, "model", "model_not_found"),
    (COMPLETION, {"prompt": ""}, "prompt", "invalid_value"),
    (COMPLETION, {"prompt": []}, "prompt", "empty_array"),
    (COMPLETION, {"prompt": [[]]}, "prompt", "invalid_value"),
    (COMPLETION, {"prompt": ["", "a"]}, "prompt", "invalid_value"),
    (COMPLETION, {"prompt": [1.5]}, "prompt[0]", "invalid_type"),
    (COMPLETION, {"prompt": [-1]}, "prompt[0]", "integer_below_min_value"),
    (COMPLETION, {"prompt": [300]}, "prompt", "invalid_value"),
    (COMPLETION, {"prompt": [2**63]}, "prompt[0]", "integer_above_max_value"),
    (COMPLETION, {"prompt": [1, "a"]}, "prompt", "invalid_type"),
    (COMPLETION, {"prompt": [[1], "a"]}, "prompt", "invalid_type"),
    (COMPLETION, {"prompt": [[1], 2]}, "prompt", "invalid_type"),
    (COMPLETION, {"prompt": [[1.5]]}, "prompt[0][0]", "invalid_type"),
    (COMPLETION, {"prompt": ["a"] * 1025}, "prompt", "array_above_max_length"),
    (COMPLETION, {"prompt": ["a"] * 1000, "n": 3}, "n", "integer_above_max_value"),
    (COMPLETION, {"prompt": "x" * 200}, "prompt", "context_length_exceeded"),
    (COMPLETION, {"prompt": [72] * 200}, "prompt", "context_length_exceeded"),
    (COMPLETION, {"max_tokens": 1000}, "max_tokens", "context_length_exceeded"),
    (COMPLETION, {"suffix": "x", "echo": True}, "echo", "unsupported_parameter"),
    (COMPLETION, {"prompt_embeds": "x"}, "prompt_embeds", "unsupported_parameter"),
    (COMPLETION, {"logprobs": 6}, "logprobs", "integer_above_max_value"),
    (COMPLETION, {"logprobs": -1}, "logprobs", "integer_below_min_value"),
    (COMPLETION, {"best_of": 1, "n": 2}, "best_of", "integer_below_min_value"),
    (COMPLETION, {"best_of": 10**6}, "best_of", "integer_above_max_value"),
    (COMPLETION, {"best_of": 2, "stream": True}, "best_of", "invalid_value"),
    (COMPLETION, {"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ("/generate", {"max_length": 3}, "max_length", "integer_below_min_value"),
    ("/generate", {"max_length": 1000}, "max_length", "context_length_exceeded"),
    ("/generate", {"max_new_tokens": 1000}, "max_new_tokens", "context_length_exceeded"),
    ("/generate", {"max_tokens": 1000}, "max_tokens", "context_length_exceeded"),
    ("/generate", {"prompt": "x" * 200}, "prompt", "context_length_exceeded"),
    ("/generate", {"num_return_sequences": 129}, "num_return_sequences", "integer_above_max_value"),
    ("/generate", {"prompt": ""}, "prompt", "invalid_value"),
    ("/tokenize", {"prompt": None}, "prompt", "missing_required_parameter"),
    ("/tokenize", {"messages": [{"role": "user", "content": "x"}]}, "messages", "invalid_value"),
    ("/tokenize", {"chat_template": "x"}, "chat_template", "unsupported_parameter"),
    ("/detokenize", {"tokens": [1, 300]}, "tokens[1]", "integer_above_max_value"),
    ("/detokenize", {"tokens": [-1]}, "tokens[0]", "integer_below_min_value"),
    ("/detokenize", {"model": "x"}, "model", "model_not_found"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes", "param", "code"), BAD_VALUES)
def test_a_bad_value_names_field_and_reason(path: str, changes: dict[str, Any], param: str, code: str | None) -> None:
    client = Client()
    reply = client.post(path, {**ENDPOINTS[path][1], **changes})
    assert reply.status == (404 if code == "model_not_found" else 400)
    assert reply.error["type"] == "invalid_request_error"
    assert (reply.error["param"], reply.error["code"]) == (param, code)
    assert len(reply.error["message"]) < 500
    if param.startswith("max_"):
        assert param in reply.error["message"]
    assert client.engine.running == set()


@pytest.mark.parametrize("name", list(CHAT_UNSUPPORTED))
def test_what_would_change_the_answer_is_refused_unless_empty(name: str) -> None:
    reply = Client().post(CHAT, chat(**{name: [1]}))
    assert reply.status == 400
    assert (reply.error["param"], reply.error["code"]) == (name, "unsupported_parameter")
    for neutral in (None, False, [], {}, ""):
        assert Client().post(CHAT, chat(**{name: neutral})).status == 200


def test_a_number_with_thousands_of_digits() -> None:
    for digits in (4000, 5000):
        reply = Client().post(
            CHAT, b'{"model":"m","messages":[{"role":"user","content":"x"}],"n":%b}' % (b"1" * digits)
        )
        assert (reply.status, reply.error["param"]) == (400, "n")


def test_unknown_fields_are_ignored() -> None:
    assert Client().post(CHAT, chat(surprise={"a": [1]}, metadata={}, tool_choice="none")).status == 200


NOT_JSON = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"1",
    b"{",
    b'{"a":1,}',
    b"\xef\xbb\xbf{}",
    "{}".encode("utf-16"),
    b'{"model":"\xff"}',
    b'{"x":"\xff","model":"m","messages":[]}',
    b'{"model":"\\ud800"}',
    b"NaN",
    b"1e999",
    b"\0",
]


@pytest.mark.parametrize("path", list(ENDPOINTS))
@pytest.mark.parametrize("body", NOT_JSON)
def test_a_body_that_is_no_json_object(path: str, body: bytes) -> None:
    reply = Client().post(path, body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["message"].startswith("We could not parse the JSON body of your request")
    assert ("it is empty" in reply.error["message"]) == (not body)
    assert (reply.error["param"], reply.error["code"]) == (None, None)


@pytest.mark.parametrize("depth", [2000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("place", [b"surprise", b"tool_choice"])
def test_deep_json(depth: int, opening: bytes, closing: bytes, place: bytes) -> None:
    deep = opening * depth + b"1" + closing * depth
    reply = Client().post(
        CHAT, b'{"model":"fake-model","messages":[{"role":"user","content":"x"}],"%b":%b}' % (place, deep)
    )
    assert reply.status == 400
    assert "nested too deeply" in reply.error["message"]


def test_brackets_in_strings_are_not_depth() -> None:
    assert Client(FakeEngine(max_model_len=2000)).post(CHAT, chat('[{"' * 200 + "\\")).status == 200


def test_too_many_fields() -> None:
    reply = Client().post(CHAT, chat(**{f"x{i}": 1 for i in range(300)}))
    assert reply.status == 400


def test_engines_error_names_the_field_the_caller_used() -> None:
    from octavo.errors import InvalidRequest

    for engine_param, param, given in [
        ("prompt", "messages", {}),
        ("logprobs", "top_logprobs", {"logprobs": True, "top_logprobs": 1}),
        ("max_tokens", "max_completion_tokens", {"max_completion_tokens": 3}),
        ("max_tokens", "max_tokens", {"max_tokens": 3}),
    ]:
        for stream in (False, True):
            engine = FakeEngine(error=InvalidRequest("no", param=engine_param))
            reply = Client(engine).post(CHAT, chat(stream=stream, **given))
            assert (reply.status, reply.error["param"]) == (400, param)


def test_limits_come_before_work() -> None:
    limits = Limits(body_bytes=1000)
    body = b'{"prompt": "%b"}' % (b"x" * 986)
    assert len(body) == 1000
    exact = Client(FakeEngine(max_model_len=4000), limits=limits)
    assert exact.post("/tokenize", body).json["count"] == 987
    over = exact.post("/tokenize", body + b" ")
    assert over.status == 413
    assert over.error["code"] == "request_too_large"
    chunked = exact.post("/tokenize", pieces=[body[:500], body[500:], b" ", b"never read"])
    assert chunked.status == 413
    declared = exact.post("/tokenize", pieces=[], headers={"content-length": "1001"})
    assert declared.status == 413
    assert exact.post("/tokenize", body, headers={"content-length": "9" * 5000}).status == 413
    assert exact.post("/tokenize", body, headers={"content-length": "-1"}).status == 400


def test_fields_nobody_reads_are_named_in_the_log_and_their_values_never(caplog: pytest.LogCaptureFixture) -> None:
    for path, (_, body) in ENDPOINTS.items():
        caplog.clear()
        assert Client().post(path, {**body, "max_token": "secret", "tools": None, "b\nc": 1}).status == 200
        (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
        names = re.fullmatch(r"fields of request [0-9a-f]{32} that were ignored: (.*)", line)
        assert names is not None, line
        assert names[1].startswith("'b\\nc', 'max_token'"), path
        assert "secret" not in caplog.text
    caplog.clear()
    client = Client()
    for _ in range(3):
        assert client.post(CHAT, chat(user="me", **{f"{i:03}" + LONG: 1 for i in range(200)})).status == 200
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert len(line) < 1000
    assert line.endswith(" and 192 more")


def test_warnings_about_ignored_fields_come_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    ignored = IgnoredFields(lambda: now)
    for moment in (100.0, 100.5, 100.9, 101.5, 101.6, 105.0):
        now = moment
        ignored.note("id", ["x"])
    suffixes = [record.getMessage().partition("'x'")[2] for record in caplog.records]
    assert suffixes == ["", " (2 more since the last warning)", " (1 more since the last warning)"]
