"""/generate, /tokenize and /detokenize."""

from __future__ import annotations

import threading

from fake_engine import BOS, ByteTokenizer, Client, FakeEngine

from octavo import __version__
from octavo.config import ServerConfig


def test_generate_returns_prompt_and_continuation() -> None:
    client = Client()
    reply = client.post("/generate", {"prompt": "Once", "num_return_sequences": 2})
    assert reply.json == {"generated_text": ["OnceHello, wörld! 0", "OnceHello, wörld! 1"]}
    params = client.engine.calls[0]["params"]
    assert (params.n, params.temperature, params.max_tokens) == (2, 1.0, 123)  # 128 of context, 5 of prompt


def test_max_length_counts_the_prompt() -> None:
    client = Client()
    assert client.post("/generate", {"prompt": "Once", "max_length": 9}).json == {"generated_text": ["OnceHell"]}
    both = [client.post("/generate", {"prompt": "Once", name: 2}).json for name in ("max_tokens", "max_new_tokens")]
    assert both[0] == both[1]
    assert client.post("/generate", {"prompt": "Once", "max_new_tokens": 2, "max_length": 9}).json == {
        "generated_text": ["OnceHe"]
    }


def test_generate_takes_several_prompts_and_sampling_fields() -> None:
    client = Client(FakeEngine(default_sampling={"temperature": 0.5}))
    body = {"prompt": ["a", "b"], "return_full_text": False, "top_k": 5, "seed": 1, "num_return_sequences": 2}
    assert client.post("/generate", body).json["generated_text"] == ["Hello, wörld! 0", "Hello, wörld! 1"] * 2
    assert [(call["params"].temperature, call["params"].top_k) for call in client.engine.calls] == [(0.5, 5)] * 2
    client.post("/generate", {"prompt": "a", "do_sample": False})
    assert client.engine.calls[-1]["params"].temperature == 0.0


def test_tokenize_a_prompt() -> None:
    client = Client()
    assert client.post("/tokenize", {"prompt": "hé"}).json == {
        "count": 4,
        "max_model_len": 128,
        "tokens": [BOS, *"hé".encode()],
        "token_strs": None,
    }
    body = {"prompt": "h", "add_special_tokens": False, "return_token_strs": True, "model": "fake-model"}
    assert client.post("/tokenize", body).json["token_strs"] == ["h"]
    assert client.post("/tokenize", {"prompt": ""}).json["count"] == 1


def test_a_text_to_tokenize_may_exceed_the_context_but_not_everything() -> None:
    client = Client()
    assert client.post("/tokenize", {"prompt": "x" * 1000}).json["count"] == 1001
    for body in ({"prompt": "x" * (2**22 + 1)}, {"messages": [{"role": "user", "content": "x" * 2**22}]}):
        reply = client.post("/tokenize", body)
        assert reply.error["code"] == "string_above_max_length"
        assert reply.error["param"] in body


def test_tokenize_messages_as_chat_would() -> None:
    client = Client()
    messages = [{"role": "user", "content": "x"}]
    assert bytes(client.post("/tokenize", {"messages": messages}).json["tokens"]) == b"<user>x<assistant>"
    body = {"messages": messages, "add_generation_prompt": False, "add_special_tokens": True}
    assert client.post("/tokenize", body).json["tokens"] == [BOS, *b"<user>x"]


def test_detokenize() -> None:
    client = Client()
    assert client.post("/detokenize", {"tokens": [BOS, 72, 105]}).json == {"prompt": "<s>Hi"}
    assert client.post("/detokenize", {"tokens": [BOS, 72], "skip_special_tokens": True}).json == {"prompt": "H"}
    assert client.post("/detokenize", {"tokens": []}).json == {"prompt": ""}


def test_a_text_longer_than_the_context_is_counted_too() -> None:
    assert Client(FakeEngine(max_model_len=20)).post("/tokenize", {"prompt": "x" * 10_000}).json["count"] == 10_001


def test_texts_are_tokenized_off_the_event_loop(monkeypatch) -> None:
    threads = []
    monkeypatch.setattr(ByteTokenizer, "encode", lambda *_: threads.append(threading.get_ident()) or [1])
    assert Client().post("/tokenize", {"prompt": "x"}).status == 200
    assert threads != [threading.get_ident()]


def test_the_root_says_what_this_is_and_where_the_api_is() -> None:
    client = Client(FakeEngine(ready=False))
    assert client.get("/").json == {"name": "octavo", "version": __version__, "api": "/v1", "models": "/v1/models"}
    assert Client(config=ServerConfig(api_key=("k",))).get("/").status == 401
