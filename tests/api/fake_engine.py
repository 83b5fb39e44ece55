"""A scripted engine with the face of `AsyncLLMEngine`, and an ASGI client that sees every part of an answer.

Token ids are UTF-8 bytes, 256 begins a text. Each step yields one token per sequence; token i of choice c of a prompt
comes from `reply`, by default "Hello, wörld!" with the choice's number. Logprobs are made up but fixed.
"""

from __future__ import annotations

import asyncio
import codecs
import json
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from one_model import OneModel
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from octavo.api.app import build_app
from octavo.api.limits import Limits
from octavo.config import EngineConfig, ServerConfig
from octavo.errors import ContextTooLong, InvalidRequest
from octavo.plan import Ability
from octavo.request import (
    BeamSearchParams,
    CompletionOutput,
    Logprob,
    PoolingParams,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
)
from octavo.snapshot import Blocks, EngineView, RequestView

BOS = 256


class ByteTokenizer:
    vocab_size = 300
    chat_template = "fake"
    special_ids = frozenset([BOS])

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        text = bytes(i for i in ids if i < 256).decode(errors="replace")
        return text if skip_special_tokens or BOS not in ids else "<s>" + text

    def token(self, token_id: int) -> str:
        return "<s>" if token_id == BOS else bytes([token_id % 256]).decode(errors="replace")

    def token_id(self, token: str) -> int | None:
        """Of those that mark the pieces around a gap."""
        return {"<fim_prefix>": 290, "<fim_suffix>": 291, "<fim_middle>": 292, "<file_sep>": 293}.get(token)

    def token_bytes(self, token_id: int) -> bytes:
        return b"<s>" if token_id == BOS else bytes([token_id % 256])


class TagTemplate:
    source = "{{ tools }} {{ tool_calls }}"

    def render(self, messages, *, add_generation_prompt=True, continue_final_message=False, **kwargs) -> str:
        if kwargs.pop("fail", False):
            raise InvalidRequest("the template says no", param="messages")
        text = "".join(f"<{m['role']}>{m['content']}" for m in messages)
        text += "".join(f"[{name}={value}]" for name, value in kwargs.items())
        return text + "<assistant>" * (add_generation_prompt and not continue_final_message)


class Counter:
    def families(self) -> list[Metric]:
        return [GaugeMetricFamily("octavo_up", "It is.", 1)]


@dataclass
class Checkpoint:
    name: str = "fake-model"


def hello(_prompt: list[int], index: int) -> str:
    return f"Hello, wörld! {index}"


@dataclass
class FakeEngine:
    reply: Callable[[list[int], int], str] = hello
    error: Exception | None = None
    fail_after: int = 0  # steps before `error`
    hang_after: int | None = None  # steps before waiting for ever
    gate: asyncio.Event | None = None  # no step before it is set
    seats: asyncio.Semaphore | None = None  # of which a request needs one for its steps
    step_seconds: float = 0.0
    joules: float | None = None  # that a step takes
    ready: bool = True
    moving: bool = True
    dead: bool = False
    max_model_len: int = 128
    ability: Ability = Ability(width=4)
    default_sampling: dict[str, Any] = field(default_factory=dict)
    config: EngineConfig = field(default_factory=EngineConfig)
    version: int = 1
    is_sleeping: bool = False
    rest_error: Exception | None = None  # of sleep and wake_up

    def __post_init__(self) -> None:
        self.tokenizer = ByteTokenizer()
        self.chat_template = TagTemplate()
        self.checkpoint = Checkpoint()
        self.metrics = Counter()
        self.calls: list[dict[str, Any]] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.steps = 0  # of the last request that made one

    async def sleep(self, level: int = 1) -> None:
        self.calls.append({"sleep": level})
        if self.rest_error is not None:
            raise self.rest_error
        self.is_sleeping = True

    async def wake_up(self) -> None:
        if self.rest_error is not None:
            raise self.rest_error
        self.is_sleeping = False

    async def generate(
        self, prompt, sampling_params, request_id, *, priority=0, cache_salt=None, output_kind="cumulative"
    ) -> AsyncIterator[RequestOutput]:
        assert output_kind == "delta"  # all that this engine does
        self.calls.append(
            {
                "prompt": prompt,
                "params": sampling_params,
                "id": request_id,
                "priority": priority,
                "cache_salt": cache_salt,
            }
        )
        if not isinstance(sampling_params, PoolingParams):
            self._check(prompt)
        assert request_id not in self.running
        self.running.add(request_id)
        try:
            async with self.seats or nullcontext():
                if isinstance(sampling_params, PoolingParams):
                    yield await self._pooled(prompt, sampling_params, request_id)
                    return
                async for output in self._steps(prompt, sampling_params, request_id):
                    yield output
        except GeneratorExit:
            self.aborted.append(request_id)
            raise
        except asyncio.CancelledError:
            self.aborted.append(request_id)
            raise
        finally:
            self.running.discard(request_id)

    async def look(self) -> EngineView:
        views = [
            RequestView(
                id=name,
                state="running",
                prompt_tokens=1,
                cached_tokens=0,
                output_tokens=0,
                tokens_per_second=None,
                first_token_seconds=None,
                age_seconds=0.5,
            )
            for name in sorted(self.running)
        ]
        return EngineView(
            state="ready",
            time=1.0,
            running=len(views),
            waiting=0,
            totals={"prompt_tokens": 1.0},
            requests=views,
            hidden_requests=0,
            blocks=Blocks(block_size=16, total=8, used=2, shared=0, kept=1, stride=1, runs=[2, 2, 1, 1, 0, 5]),
        )

    async def encode(self, prompt, *, add_special_tokens=True) -> tuple[str | None, list[int]]:
        if not isinstance(prompt, str):
            self._check(prompt)
            return None, prompt
        ids = self.tokenizer.encode(prompt, add_special_tokens)
        self._check(ids)
        return prompt, ids

    async def encode_to_pool(self, prompt, *, truncate=None, add_special_tokens=True) -> tuple[list[int], int | None]:
        if isinstance(prompt, list):
            ids, second = prompt, None
        else:
            first, *others = [prompt] if isinstance(prompt, str) else prompt
            ids = self.tokenizer.encode(first, add_special_tokens)
            second = len(ids) if others else None
            ids = ids + [token for text in others for token in text.encode()]
        if truncate is not None:
            ids = ids[: self.max_model_len if truncate == -1 else truncate]
        if len(ids) > self.max_model_len:
            raise ContextTooLong("the text is too long", param="prompt")
        return ids, second

    async def _pooled(self, prompt: list[int], params: PoolingParams, request_id: str) -> RequestOutput:
        if self.error is not None:
            raise self.error
        if self.hang_after is not None:
            await asyncio.Event().wait()
        await asyncio.sleep(self.step_seconds)
        ended = CompletionOutput(index=0, text="", token_ids=[], finish_reason="stop")
        return RequestOutput(
            request_id=request_id,
            prompt=None,
            prompt_token_ids=prompt,
            outputs=[ended],
            finished=True,
            pooled=array("f", vector(prompt, params)).tobytes(),
        )

    def _check(self, prompt: list[int]) -> None:
        if any(i >= self.tokenizer.vocab_size for i in prompt):
            raise InvalidRequest("token id outside the vocabulary", param="prompt", code="invalid_value")
        if len(prompt) >= self.max_model_len:
            raise ContextTooLong("the prompt is too long", param="prompt")

    async def _steps(self, prompt, params, request_id) -> AsyncIterator[RequestOutput]:
        n = params.beam_width if isinstance(params, BeamSearchParams) else params.n
        context = self.max_model_len - len(prompt)
        room = min(params.max_tokens or context, context)
        scripts = [Script(self.reply(prompt, index), index, params, room) for index in range(n)]
        times = RequestMetrics(arrival_time=1.0, first_scheduled_time=1.5)
        step = 0
        while not all(script.done for script in scripts):
            if self.error is not None and step == self.fail_after:
                raise self.error
            self.steps = step
            if self.hang_after == step:
                await asyncio.Event().wait()
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(self.step_seconds)
            outputs = [script.next() for script in scripts if not script.done]
            times.compute_seconds += 0.25
            if self.joules is not None:
                times.energy_joules = (times.energy_joules or 0.0) + self.joules
            yield RequestOutput(
                request_id=request_id,
                prompt=None,
                prompt_token_ids=prompt,
                outputs=outputs,
                finished=all(script.done for script in scripts),
                prompt_logprobs=prompt_logprobs(prompt, params) if step == 0 else None,
                num_cached_tokens=4,
                metrics=times,
            )
            step += 1


def vector(prompt: list[int], params: PoolingParams) -> list[float]:
    """How often a text has each of the letters a to d; how many of a second text's tokens the first has too."""
    if params.task == "embed":
        return [float(prompt.count(letter)) for letter in b"abcd"][: params.dimensions]
    assert params.second is not None
    second = prompt[params.second :]
    return [sum(token in prompt[: params.second] for token in second) / len(second)]


class Script:
    def __init__(self, text: str, index: int, params: SamplingParams | BeamSearchParams, room: int) -> None:
        self.tokens = text.encode()
        self.index = index
        self.top = getattr(params, "logprobs", None)
        self.room = room
        self.place = 0
        self.done = False
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def next(self) -> CompletionOutput:
        token = self.tokens[self.place]
        self.place += 1
        ended = self.place == len(self.tokens)
        self.done = ended or self.place == self.room
        return CompletionOutput(
            index=self.index,
            text=self.decoder.decode(bytes([token])),
            token_ids=[token],
            logprobs=None if self.top is None else [position(token, self.top, -0.25 * self.index - 0.5)],
            finish_reason=None if not self.done else "stop" if ended else "length",
            stop_reason="<end>" if ended else None,
        )


def position(token: int, top: int, logprob: float) -> dict[int, Logprob]:
    """The chosen token ranks second: the best one is the next id."""
    best = {token + 1 + k: Logprob(-0.125 - k, 1 + k + (k > 0), chr(97 + k)) for k in range(top)}
    return {token: Logprob(logprob, 2, None), **best}


def prompt_logprobs(prompt: list[int], params: Any) -> list[dict[int, Logprob] | None] | None:
    top = getattr(params, "prompt_logprobs", None)
    return None if top is None else [None, *(position(token, top, -1.0) for token in prompt[1:])]


@dataclass
class Reply:
    """What a client saw. `complete` is false for an answer that was cut off."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        assert self.json.keys() == {"error"}
        assert self.json["error"].keys() == {"message", "type", "param", "code"}
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The stream's events; `[DONE]` as a string."""
        chunks = self.body.decode().split("\n\n")
        assert chunks.pop() == ""
        assert all(chunk.startswith("data: ") for chunk in chunks)
        data = [chunk.removeprefix("data: ") for chunk in chunks]
        return [event if event == "[DONE]" else json.loads(event) for event in data]

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


@dataclass
class Client:
    """Sends requests to an app in process. `leave_after`: go away after so many body parts; `leave_when`: when true."""

    engine: FakeEngine = field(default_factory=FakeEngine)
    config: ServerConfig = field(default_factory=ServerConfig)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.models = OneModel(self.engine)
        self.app = build_app(self.models, self.config, self.limits)

    def get(self, path: str, **options: Any) -> Reply:
        return self.request("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> Reply:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        return self.request("POST", path, data=data, headers=headers, **options)

    def request(self, method: str, path: str, **options: Any) -> Reply:
        return asyncio.run(self.send(method, path, **options))

    async def send(
        self,
        method: str,
        path: str,
        *,
        data: bytes = b"",
        headers: dict[str, str] | list[tuple[str, str]] = (),
        pieces: list[bytes] | None = None,
        leave_after: int | None = None,
        leave_when: Callable[[], bool] | None = None,
        scope: dict[str, Any] | None = None,
    ) -> Reply:
        reply = Reply()
        left = asyncio.Event()
        to_send = list(pieces if pieces is not None else [data])
        pairs = headers.items() if isinstance(headers, dict) else headers

        async def receive() -> dict[str, Any]:
            if to_send:
                return {"type": "http.request", "body": to_send.pop(0), "more_body": bool(to_send)}
            if leave_when is None:
                await left.wait()
            while leave_when is not None and not leave_when():
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            assert not reply.complete
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                reply.headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
                return
            reply.parts.append(message["body"])
            reply.complete = not message.get("more_body", False)
            if reply.complete or len(reply.parts) == leave_after:
                left.set()
                await asyncio.sleep(0)

        await self.app(
            {
                "type": "http",
                "method": method,
                "path": path,
                "raw_path": path.encode(),
                "query_string": b"",
                "root_path": "",
                "scheme": "http",
                "http_version": "1.1",
                "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs],
                "server": ("testserver", 80),
                "client": ("client", 1),
                **(scope or {}),
            },
            receive,
            send,
        )
        return reply


def chat(content: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": "fake-model", "messages": [{"role": "user", "content": content}], **fields}


def completion(prompt: Any = "Once", **fields: Any) -> dict[str, Any]:
    return {"model": "fake-model", "prompt": prompt, **fields}
