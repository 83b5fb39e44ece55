"""The real server with the real model, driven by the openai client over a real socket."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

START_SECONDS = 120  # a bound for slow machines, not an expectation
MODEL = "SmolLM2-135M-Instruct"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until(condition, seconds: float, what: str) -> None:
    """Ask again and again; the condition itself waits (it asks a server), so nothing spins."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what


@pytest.fixture(scope="module")
def url(smollm2) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "octavo.cli", "serve", "--port", str(port), "--max-model-len", "1024"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    base = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, process.stderr.read()
        try:
            return httpx.get(f"{base}/ready").is_success
        except httpx.ConnectError:
            return False

    wait_until(ready, START_SECONDS, "the server never got ready")
    yield base
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def client(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def metric(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    return sum(float(value) for value in re.findall(rf"^vllm:{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def is_idle(url: str) -> bool:
    return metric(url, "kv_cache_usage_perc") == 0.0 == metric(url, "num_requests_running")


def test_chat_answers_sensibly(client):
    reply = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What is 2 + 2?"}], temperature=0, max_tokens=30
    )
    assert "4" in reply.choices[0].message.content
    assert reply.choices[0].finish_reason in ("stop", "length")
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 3, "temperature": 1.2, "n": 2, "logprobs": 2}])
def test_streaming_says_what_the_whole_answer_says(client, options):
    ask = {"model": MODEL, "prompt": "The sea is", "max_tokens": 24, **options}
    whole = client.completions.create(**ask)
    texts = [""] * len(whole.choices)
    reasons = {}
    for chunk in client.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}


WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=str)
def test_required_calls_follow_their_schema_though_the_model_knows_no_tools(client, choice):
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [{"type": "function", "function": WEATHER}],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "temperature": 1.5,
        "seed": 4,
        "n": 2,
    }
    whole = client.chat.completions.create(**asked)
    streamed = ["", ""]
    for chunk in client.chat.completions.create(stream=True, **asked):
        for part in chunk.choices:
            streamed[part.index] += "".join(call.function.arguments for call in part.delta.tool_calls or ())
    for said, arguments in zip(whole.choices, streamed, strict=True):
        assert said.finish_reason == "tool_calls"
        assert said.message.content is None
        (call,) = said.message.tool_calls
        assert call.function.name == "get_weather"
        assert call.function.arguments == arguments
        values = json.loads(arguments)
        assert values.keys() == {"city", "unit"}
        assert values["unit"] in ("celsius", "fahrenheit")


def test_a_stop_string_across_tokens_is_never_seen(client):
    ask = {"model": MODEL, "prompt": "1, 2, 3, 4, 5,", "max_tokens": 40, "temperature": 0}
    free = client.completions.create(**ask).choices[0].text
    stop = free[7:13]  # begins and ends inside tokens, with spaces and digits
    expected = free[: free.index(stop)]
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**ask, stop=[stop], stream=True)]
    assert "".join(pieces) == expected
    assert client.completions.create(**ask, stop=stop).choices[0].text == expected


def test_characters_of_several_tokens_arrive_whole(client):
    emoji = "🐉🦄🧑‍🚀"
    ask = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Repeat exactly: {emoji} {emoji} {emoji}"}],
        "max_tokens": 40,
        "temperature": 0,
    }
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**ask, stream=True)]
    whole = client.chat.completions.create(**ask).choices[0].message.content
    assert "".join(pieces) == whole  # half a character in one piece and half in the next would be two wrong ones


def test_logprobs_are_those_of_the_chosen_tokens(client):
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Say yes."}],
        temperature=0,
        max_tokens=5,
        logprobs=True,
        top_logprobs=3,
    )
    choice = reply.choices[0]
    assert "".join(entry.token for entry in choice.logprobs.content).startswith(choice.message.content[:3])
    for entry in choice.logprobs.content:
        assert entry.logprob <= 0
        assert entry.logprob == pytest.approx(max(top.logprob for top in entry.top_logprobs))


def test_a_client_that_leaves_gives_its_blocks_back(client, url):
    stream = client.completions.create(model=MODEL, prompt="Count: 1 2 3", max_tokens=900, stream=True, n=3)
    for _ in range(5):
        next(iter(stream))
    assert not is_idle(url)
    stream.close()
    wait_until(lambda: is_idle(url), 30, "the blocks of a client that left never came back")


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_out_of_time_gives_its_blocks_back(client, url, stream):
    ask = {"model": MODEL, "prompt": "Count: 1 2 3", "max_tokens": 900, "stream": stream}
    with pytest.raises(openai.APIError) as caught:
        list(client.completions.create(**ask, extra_body={"timeout": 0.2, "ignore_eos": True}))
    assert caught.value.code == "request_timeout"
    wait_until(lambda: is_idle(url), 30, "the blocks of a request out of time never came back")


def test_bad_requests_cost_nothing_and_kill_nothing(client, url):
    for ask, error in (
        ({"model": "nobody", "prompt": "x"}, openai.NotFoundError),
        ({"model": MODEL, "prompt": "x " * 3000}, openai.BadRequestError),
        ({"model": MODEL, "prompt": [49152]}, openai.BadRequestError),
        ({"model": MODEL, "prompt": "x", "temperature": -1}, openai.BadRequestError),
        ({"model": MODEL, "prompt": "x", "logit_bias": {"999999": 1}}, openai.BadRequestError),
    ):
        with pytest.raises(error) as caught:
            client.completions.create(**ask)
        assert set(caught.value.body) >= {"message", "type", "param", "code"}
    assert is_idle(url)
    assert client.completions.create(model=MODEL, prompt="x", max_tokens=1).choices
