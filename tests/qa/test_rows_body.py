"""Bad inputs 26 to 56: what JSON bodies say, from their first byte to the last sampling parameter."""

from __future__ import annotations

import json
import socket
from typing import Any

import msgspec
import pytest
from qa_server import QaServer, Reply, parse, refused
from tiny_model import CONTEXT, POISON, TOKENS

from octavo.api.openai.types import ChatRequest, CompletionRequest

pytestmark = pytest.mark.qa

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
POSTS = (CHAT, COMPLETIONS, "/generate", "/tokenize", "/detokenize")


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


# ---------------------------------------------------------------------- C. JSON

NOT_JSON = [
    b"", b"null", b"[]", b'"x"', b"{", b'{"a":1,}', b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b'{"model":"\xff"}',
    b"NaN", b"\0", b"{}{}", b"{'a':1}", b'{"model":"\\ud800"}',
]  # fmt: skip


@pytest.mark.parametrize("path", POSTS)
def test_row_26_bodies_that_are_no_json_object(server: QaServer, path: str) -> None:
    for body in NOT_JSON:
        message = refused(server.post(path, body)).error["message"]
        assert message.startswith("We could not parse the JSON body of your request"), body


def test_row_26_a_number_beyond_all_numbers(server: QaServer) -> None:
    message = refused(server.post(CHAT, b"1e999")).error["message"]
    assert message.startswith("We could not parse the JSON body of your request")


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("place", [b"surprise", b"messages", b"stop", b"logit_bias"])
def test_row_27_nesting_of_100_000(server: QaServer, opening: bytes, closing: bytes, place: bytes) -> None:
    deep = opening * 100_000 + b"1" + closing * 100_000
    reply = server.post(CHAT, b'{"model":"%b","%b":%b}' % (server.model.encode(), place, deep))
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"


def test_row_28_a_million_unknown_fields(server: QaServer) -> None:
    fields = b",".join(b'"a%x":1' % number for number in range(10**6))
    assert server.post(CHAT, b"{" + fields + b"}").status in (400, 413)


def test_row_29_one_unknown_field_is_ignored(server: QaServer) -> None:
    assert server.chat(surprise={"a": [1]}).status == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [(CHAT, user("x"), "model"), (CHAT, {"model": "tiny"}, "messages"), (COMPLETIONS, {"prompt": "x"}, "model"),
     (COMPLETIONS, {"model": "tiny"}, "prompt"), ("/generate", {}, "prompt"), ("/tokenize", {}, "prompt"),
     ("/detokenize", {}, "tokens")],
)  # fmt: skip
def test_row_30_what_is_required(server: QaServer, path: str, body: dict[str, Any], param: str) -> None:
    refused(server.post(path, json.dumps(body).encode()), param=param, code="missing_required_parameter")


ODD_VALUES: list[Any] = [None, True, -1, 0, 1.5, "x", "", [], [None], {}, {"a": 1}, [[1]], 2**63, 1e308]


@pytest.mark.parametrize(("path", "shape"), [(CHAT, ChatRequest), (COMPLETIONS, CompletionRequest)])
def test_row_31_every_field_with_every_type(server: QaServer, path: str, shape: type[msgspec.Struct]) -> None:
    """Either the value is a good one, or the refusal names the field; never anything else."""
    required: dict[str, Any] = {"model": server.model, **user("x"), "prompt": "x", "max_tokens": 1}
    refusals = 0
    for name in shape.__struct_encode_fields__:
        for value in ODD_VALUES:
            body = json.dumps({**required, name: value}).encode()
            reply = server.post(path, body)
            if reply.status == 200:
                continue
            refusals += 1
            assert reply.status == (404 if name == "model" and isinstance(value, str) else 400), (name, value, reply)
            assert reply.error["type"] == "invalid_request_error"
            assert str(reply.error["param"]).startswith(name), (name, value, reply)
    assert refusals > 200


@pytest.mark.parametrize(
    "name",
    ["unknown", "", "../../etc/passwd", "/etc/passwd", "a\0b", "x" * 2**20, "http://127.0.0.1/", "tiny/", "TINY"],
    ids=range(9),
)  # fmt: skip
def test_row_32_models_that_are_not_there(server: QaServer, name: str) -> None:
    for path, fields in ((CHAT, user("x")), (COMPLETIONS, {"prompt": "x"}), ("/tokenize", {"prompt": "x"})):
        reply = server.post(path, json.dumps({"model": name, **fields}).encode())
        refused(reply, 404, param="model", code="model_not_found")


# ---------------------------------------------------------------------- D. messages and prompts


def test_row_33_no_messages(server: QaServer) -> None:
    refused(server.post(CHAT, {"messages": []}), param="messages", code="empty_array")


@pytest.mark.parametrize(
    ("message", "param", "code"),
    [
        ({"role": "root", "content": "x"}, "messages[0].role", "invalid_value"),
        ({"role": "", "content": "x"}, "messages[0].role", "invalid_value"),
        ({"role": 1, "content": "x"}, "messages[0].role", "invalid_type"),
        ({"content": "x"}, "messages[0].role", "missing_required_parameter"),
        ({"role": "user"}, "messages[0].content", "missing_required_parameter"),
        ({"role": "user", "content": None}, "messages[0].content", "invalid_type"),
        ({"role": "user", "content": []}, "messages[0].content", "empty_array"),
        ({"role": "user", "content": [{}]}, "messages[0].content[0].type", "missing_required_parameter"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text", "missing_required_parameter"),
        ({"role": "user", "content": [{"type": "nothing"}]}, "messages[0].content[0].type", "invalid_value"),
    ],
)
def test_row_34_messages_that_make_no_sense(server: QaServer, message: dict[str, Any], param: str, code: str) -> None:
    refused(server.post(CHAT, {"messages": [message]}), param=param, code=code)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x", "tool_call_id": "nobody"},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{no json"}}]},
        {"role": "assistant", "content": None, "tool_calls": []},
    ],
)
def test_row_35_tool_messages_out_of_place(server: QaServer, message: dict[str, Any]) -> None:
    reply = server.post(CHAT, {"messages": [{"role": "user", "content": "x"}, message], "max_tokens": 2})
    assert reply.status == 200 or reply.error["type"] == "invalid_request_error"
    assert reply.status in (200, 400)


LONG = ["x" * 10_000_000, "a " * 1_000_000, "👩‍👩‍👧‍👦" * 100_000, " " * 1_000_000, "\n" * 1_000_000]


@pytest.mark.parametrize("text", LONG, ids=["10 MB", "words", "families", "spaces", "line breaks"])
def test_row_36_prompts_beyond_every_context(roomy: QaServer, text: str) -> None:
    server = roomy
    with server.streaming(max_tokens=6000) as stream:
        refused(server.chat(text), param="messages", code="context_length_exceeded")
        refused(server.complete(text), param="prompt", code="context_length_exceeded")
        stream.setblocking(False)
        assert stream.recv(1), "a stream stood still while a long prompt was looked at"


@pytest.mark.parametrize(
    "text", ["{{7*7}}", "{% raw %}", "{% for x in range(10**9) %}{% endfor %}", "</s><s>[INST]", "{#"]
)
def test_row_37_templates_in_texts_stay_text(server: QaServer, text: str) -> None:
    reply = server.post("/tokenize", {"messages": [{"role": "user", "content": text}]})
    shown = server.post("/detokenize", {"tokens": reply.json["tokens"]}).json["prompt"]
    assert shown == f"<user>{text}<assistant>"


BAD_PROMPTS: list[tuple[Any, str, str]] = [
    ("", "prompt", "invalid_value"),
    ([], "prompt", "empty_array"),
    ([[]], "prompt", "invalid_value"),
    ([""], "prompt", "invalid_value"),
    ([1.5], "prompt[0]", "invalid_type"),
    ([-1], "prompt[0]", "integer_below_min_value"),
    ([len(TOKENS)], "prompt", "invalid_value"),
    ([2**63], "prompt[0]", "integer_above_max_value"),
    ([5, "a"], "prompt", "invalid_type"),
    ([[5], "a"], "prompt", "invalid_type"),
    ([None], "prompt[0]", "invalid_type"),
    ([True], "prompt[0]", "invalid_type"),
]


@pytest.mark.parametrize(("prompt", "param", "code"), BAD_PROMPTS, ids=[repr(prompt) for prompt, *_ in BAD_PROMPTS])
def test_row_38_prompts_that_are_none(server: QaServer, prompt: Any, param: str, code: str) -> None:
    refused(server.complete(prompt), param=param, code=code)


def test_row_38_the_last_token_of_the_vocabulary_is_one(server: QaServer) -> None:
    assert server.complete([len(TOKENS) - 2]).status == 200


def test_row_39_more_prompts_than_one_request_may_bring(server: QaServer) -> None:
    refused(server.complete(["a"] * 10_000), param="prompt", code="array_above_max_length")
    refused(server.complete(["a"] * 1000, n=100), param="n", code="integer_above_max_value")
    refused(server.complete([["a"] * 3] * 5), param="prompt[0][0]", code="invalid_type")


URLS = [
    "file:///etc/passwd", "data:text/plain;base64,eA==", "http://169.254.169.254/latest/meta-data/", "http://[::1]/x",
    "http://0x7f000001/", "http://a\\@b/", "http://localhost:{port}/live",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file"])
def test_row_40_urls_are_never_fetched(server: QaServer, kind: str, url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        part = {"type": kind, kind: {"url": url.format(port=listener.getsockname()[1])}}
        refused(server.chat([part]), param="messages[0].content[0].type", code="invalid_value")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody came
            listener.accept()


def test_row_40_prompt_embeddings_are_refused(server: QaServer) -> None:
    reply = server.post(COMPLETIONS, {"prompt": "x", "prompt_embeds": "AAAA"})
    refused(reply, param="prompt_embeds", code="unsupported_parameter")


def test_row_41_ten_thousand_images(server: QaServer) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100}}
    refused(server.chat([part] * 10_000), param="messages[0].content", code="array_above_max_length")
    refused(server.chat([part] * 2), param="messages[0].content[0].type", code="invalid_value")


def test_row_42_templates_from_outside(server: QaServer) -> None:
    loop = "{% for x in range(10**9) %}{% endfor %}"
    refused(server.chat(chat_template=loop), param="chat_template", code="unsupported_parameter")
    name = "chat_template_kwargs.chat_template"
    refused(server.chat(chat_template_kwargs={"chat_template": loop}), param=name, code="unsupported_parameter")
    messages = {"messages": [{"role": "user", "content": "x"}], "chat_template": loop}
    refused(server.post("/tokenize", messages), param="chat_template", code="unsupported_parameter")


@pytest.mark.parametrize(
    ("kwargs", "param", "code"),
    [
        ({"tokenize": True}, "chat_template_kwargs.tokenize", "unsupported_parameter"),
        ({"messages": []}, "chat_template_kwargs", "invalid_type"),
        ({"messages": "x"}, "chat_template_kwargs.messages", "unsupported_parameter"),
        ({"x": "y" * 2000}, "chat_template_kwargs", "string_above_max_length"),
        ({"x": [1]}, "chat_template_kwargs", "invalid_type"),
        ({f"x{i}": 1 for i in range(17)}, "chat_template_kwargs", "object_above_max_length"),
    ],
)
def test_row_43_odd_arguments_for_the_template(server: QaServer, kwargs: dict[str, Any], param: str, code: str) -> None:
    refused(server.chat(chat_template_kwargs=kwargs), param=param, code=code)


# ---------------------------------------------------------------------- E. sampling

RANGES: list[tuple[int, dict[str, Any], str]] = [
    (44, {"top_p": 0}, "decimal_below_min_value"),
    (44, {"top_p": -1}, "decimal_below_min_value"),
    (44, {"top_p": 1.1}, "decimal_above_max_value"),
    (44, {"min_p": 2}, "decimal_above_max_value"),
    (44, {"min_p": -0.1}, "decimal_below_min_value"),
    (44, {"top_k": -5}, "integer_below_min_value"),
    (44, {"top_k": 2**63}, "integer_above_max_value"),
    (44, {"temperature": -1}, "decimal_below_min_value"),
    (45, {"presence_penalty": 2.1}, "decimal_above_max_value"),
    (45, {"frequency_penalty": -2.1}, "decimal_below_min_value"),
    (45, {"repetition_penalty": 0}, "decimal_below_min_value"),
    (45, {"repetition_penalty": -1}, "decimal_below_min_value"),
    (46, {"n": 0}, "integer_below_min_value"),
    (46, {"n": -1}, "integer_below_min_value"),
    (46, {"n": 129}, "integer_above_max_value"),
    (46, {"n": 2**31}, "integer_above_max_value"),
    (46, {"n": 2**63}, "integer_above_max_value"),
    (47, {"best_of": 1, "n": 2}, "integer_below_min_value"),
    (47, {"best_of": 10**6}, "integer_above_max_value"),
    (47, {"best_of": 2, "stream": True}, "invalid_value"),
    (48, {"max_tokens": 0}, "integer_below_min_value"),
    (48, {"max_tokens": -1}, "integer_below_min_value"),
    (48, {"max_tokens": 2**31}, "integer_above_max_value"),
    (48, {"max_tokens": CONTEXT}, "context_length_exceeded"),
    (48, {"min_tokens": 10**9, "max_tokens": None}, "integer_above_max_value"),
    (49, {"min_tokens": 9, "max_tokens": 8}, "invalid_value"),
    (50, {"logprobs": 6}, "integer_above_max_value"),
    (50, {"logprobs": -1}, "integer_below_min_value"),
    (50, {"logprobs": 2**63}, "integer_above_max_value"),
    (50, {"prompt_logprobs": 1000}, "integer_above_max_value"),
    (51, {"stop": ["a", "b", "c", "d", "e"]}, "array_above_max_length"),
    (51, {"stop": ["a"] * 10_000}, "array_above_max_length"),
    (51, {"stop": ""}, "invalid_value"),
    (51, {"stop": "x" * 2**20}, "string_above_max_length"),
    (51, {"stop": 5}, "invalid_type"),
    (52, {"seed": 2**64}, "integer_above_max_value"),
    (52, {"seed": 1.5}, "invalid_type"),
    (54, {"stream_options": {"include_usage": True}}, "invalid_value"),
    (56, {"cache_salt": "x" * 257}, "string_above_max_length"),
    (56, {"cache_salt": "x" * 2**20}, "string_above_max_length"),
    (56, {"cache_salt": 5}, "invalid_type"),
    (56, {"priority": 2**31}, "integer_above_max_value"),
    (56, {"priority": "high"}, "invalid_type"),
    (56, {"kv_transfer_params": {"a": 1}}, "unsupported_parameter"),
]


def _ranges(row: int) -> pytest.MarkDecorator:
    cases = [(fields, code) for number, fields, code in RANGES if number == row]
    return pytest.mark.parametrize(("fields", "code"), cases, ids=[json.dumps(fields)[:40] for fields, _ in cases])


def out_of_range(server: QaServer, fields: dict[str, Any], code: str) -> None:
    refused(server.complete(**fields), param=next(iter(fields)), code=code)


@_ranges(44)
def test_row_44_top_p_min_p_top_k(server: QaServer, fields: dict[str, Any], code: str) -> None:
    out_of_range(server, fields, code)


@_ranges(45)
def test_row_45_penalties(server: QaServer, fields: dict[str, Any], code: str) -> None:
    out_of_range(server, fields, code)


@_ranges(46)
def test_row_46_n(server: QaServer, fields: dict[str, Any], code: str) -> None:
    out_of_range(server, fields, code)


@_ranges(47)
def test_row_47_best_of(server: QaServer, fields: dict[str, Any], code: str) -> None:
    out_of_range(server, fields, code)


@_ranges(48)
def test_row_48_max_tokens(server: QaServer, fields: dict[str, Any], code: str) -> None:
    out_of_range(server, fields, code)


@_ranges(49)
def test_row_49_min_tokens_above_max_tokens(server: QaServer, fields: dict[str, Any], code: str) -> None:
    out_of_range(server, fields, code)


@_ranges(50)
def test_row_50_logprobs(server: QaServer, fields: dict[str, Any], code: str) -> None:
    out_of_range(server, fields, code)


def test_row_50_chats_top_logprobs(server: QaServer) -> None:
    refused(server.chat(logprobs=True, top_logprobs=21), param="top_logprobs", code="integer_above_max_value")
    refused(server.chat(top_logprobs=2), param="top_logprobs", code="invalid_value")


@_ranges(51)
def test_row_51_stop(server: QaServer, fields: dict[str, Any], code: str) -> None:
    out_of_range(server, fields, code)


def test_row_51_stop_tokens_out_of_range(server: QaServer) -> None:
    refused(server.complete(stop_token_ids=[-1]), param="stop_token_ids[0]", code="integer_below_min_value")
    refused(server.complete(stop_token_ids=[len(TOKENS)]), param="stop_token_ids", code="invalid_value")


@_ranges(52)
def test_row_52_seed(server: QaServer, fields: dict[str, Any], code: str) -> None:
    out_of_range(server, fields, code)


def test_row_52_seed_minus_one_is_none(server: QaServer) -> None:
    assert server.complete(seed=-1, temperature=1.0).status == 200


@pytest.mark.parametrize("seed", [0, -2, 2**63 - 1, -(2**63)])
def test_row_52_a_seed_that_is_taken_is_repeatable(server: QaServer, seed: int) -> None:
    first, second = (server.complete(seed=seed, temperature=1.0, max_tokens=20) for _ in range(2))
    assert first.status == 200
    assert first.text == second.text


@pytest.mark.parametrize("stream", [False, True])
def test_row_53_logits_that_are_no_numbers(server: QaServer, stream: bool) -> None:
    """The poisoned request fails, its neighbour's text is that of a request alone."""
    fields = {"temperature": 0, "max_tokens": 1500, "ignore_eos": True}
    alone = server.complete("A neighbour", **fields).text
    with server.connect() as neighbour:
        neighbour.sendall(server.request(COMPLETIONS, {"prompt": "A neighbour", "stream": True, **fields}))
        raw = neighbour.recv(4096)
        failed = server.complete(f"Some {POISON} words", stream=stream, max_tokens=8)
        raw += b"".join(iter(lambda: neighbour.recv(65536), b""))
    events = _events(raw)
    assert events.pop() == "[DONE]"
    assert "".join(event["choices"][0]["text"] for event in events) == alone
    if failed.status == 200:  # the stream had begun
        assert not failed.complete
        error = failed.events[-1]["error"]
    else:
        assert failed.status == 500
        error = failed.error
    assert error["type"] == "server_error"


def _events(raw: bytes) -> list[Any]:
    reply = parse(raw)
    assert reply.complete
    return reply.events


def test_row_54_streams_of_several(server: QaServer) -> None:
    reply = server.complete(stream=True, n=3, stream_options={"include_usage": True})
    assert reply.events[-1] == "[DONE]"
    assert {choice["index"] for event in reply.events[:-1] for choice in event["choices"]} == {0, 1, 2}
    assert reply.events[-2]["usage"]["completion_tokens"] == 24


@_ranges(54)
def test_row_54_stream_options_without_stream(server: QaServer, fields: dict[str, Any], code: str) -> None:
    out_of_range(server, fields, code)


def test_row_55_to_the_end_of_the_context(server: QaServer) -> None:
    prompt = [5] * 8000
    reply = server.complete(prompt, ignore_eos=True, max_tokens=8192 - 8000)
    assert reply.json["choices"][0]["finish_reason"] == "length"
    assert reply.json["usage"]["total_tokens"] == 8192
    chat = server.post(CHAT, {**user("x" * 7900), "ignore_eos": True})
    assert chat.json["choices"][0]["finish_reason"] == "length"
    assert chat.json["usage"]["total_tokens"] == 8192


@_ranges(56)
def test_row_56_priority_salt_and_transfer(server: QaServer, fields: dict[str, Any], code: str) -> None:
    out_of_range(server, fields, code)


@pytest.mark.parametrize("salt", ["\0", "🙂" * 100, "../../x", "a\r\nb", "x" * 256, "{{7*7}}"], ids=range(6))
def test_row_56_any_salt_that_is_taken_works(server: QaServer, salt: str) -> None:
    reply: Reply = server.complete("A salted prompt of more than one block", cache_salt=salt, temperature=0)
    again = server.complete("A salted prompt of more than one block", cache_salt=salt, temperature=0)
    assert (reply.status, again.status) == (200, 200)
    assert reply.text == again.text
