"""One chat turn, however it was asked for: an OpenAI chat completion, a response, Anthropic's messages, Ollama's chat.

Every dialect builds a `ChatRequest`, prepares a `Turn` from it and says in its own JSON what `Turn.parts` or
`Turn.whole` give: a stream and an answer in one piece are the same parts, sent or folded. Errors name the fields of
`ChatRequest`. Knows neither HTTP nor any dialect's answers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Self

from msgspec.structs import replace

from octavo.api.desk import Call
from octavo.api.generation import Delta, Job, Opening, deltas
from octavo.api.openai.prompts import render_chat
from octavo.api.openai.sampling import beam_params, check_common, check_room, sampling_params
from octavo.api.openai.structured import field_name
from octavo.api.openai.types import ChatRequest, TurnFinish
from octavo.errors import InvalidRequest
from octavo.face import Engine
from octavo.request import BeamSearchParams, Logprob, SamplingParams


@dataclass(slots=True, kw_only=True)
class ToolCallPart:
    """What is new in one tool call. Its first part has the id and the name, with or without arguments."""

    index: int  # which of the choice's calls: 0, 1, …
    id: str | None = None
    name: str | None = None
    arguments: str = ""  # the next piece of a JSON text


@dataclass(slots=True, kw_only=True)
class Part:
    """What is new in one choice, in this order: reasoning, content, tool calls.

    A choice begins with a part that has nothing but its opening, and ends with the one that has a finish reason. A part
    may hold tokens without any text: it will come with a later one.
    """

    index: int
    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallPart] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: TurnFinish | None = None
    stop_reason: int | str | None = None
    opening: Opening | None = None


@dataclass(slots=True, kw_only=True)
class ToolCall:
    id: str
    name: str
    arguments: str  # a JSON text; cut off where the answer was


@dataclass(slots=True, kw_only=True)
class Message:
    """A whole choice: its parts folded. `content` is None where there are only tool calls."""

    index: int
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: TurnFinish | None = None
    stop_reason: int | str | None = None
    opening: Opening | None = None

    def add(self, part: Part) -> None:
        if part.content:
            self.content = (self.content or "") + part.content
        if part.reasoning:
            self.reasoning = (self.reasoning or "") + part.reasoning
        for new in part.tool_calls:
            if new.id is not None and new.name is not None:
                self.tool_calls.append(ToolCall(id=new.id, name=new.name, arguments=""))
            self.tool_calls[new.index].arguments += new.arguments
        self.token_ids += part.token_ids
        if part.logprobs is not None:
            self.logprobs = [] if self.logprobs is None else self.logprobs
            self.logprobs += part.logprobs
        self.finish_reason = part.finish_reason or self.finish_reason
        self.stop_reason = self.stop_reason if part.stop_reason is None else part.stop_reason
        self.opening = part.opening or self.opening
        if part.finish_reason is not None and self.content is None and not self.tool_calls:
            self.content = ""


class Turn:
    """A chat request that is ready to run, once: either by `parts` or by `whole`.

    name: the model's name to answer with. engine: the model, this call's until its answer is over. Tokens are counted
    in `call.tally`.
    """

    def __init__(self, call: Call, request: ChatRequest, name: str, engine: Engine, job: Job) -> None:
        self.call = call
        self.request = request
        self.name = name
        self.engine = engine
        self.job = job

    @classmethod
    async def prepare(cls, call: Call, request: ChatRequest) -> Self:
        """Check the request, lease its model, and put its messages into the model's chat template.

        Raises InvalidRequest, ContextTooLong, ModelNotFound, Overloaded or EngineDead.
        """
        _check(request)
        call.deadline.shorten(request.timeout)
        served = await call.model(request.model, request.user, task="generate")
        with _field_names(request):
            job = await _job(call, served.engine, request)
        return cls(call, request, served.name, served.engine, job)

    def allow(self, max_tokens: int) -> None:
        """End the answer after so many tokens, which may be more than the context has room for."""
        self.job.params = replace(self.job.params, max_tokens=max_tokens)

    async def parts(self) -> AsyncGenerator[Part, None]:
        """The answer as it comes, all choices interleaved. Raises what the engine does; closing it aborts the turn."""
        with _field_names(self.request):
            async with aclosing(deltas(self.call, self.engine, [self.job])) as source:
                async for delta in source:
                    yield _part(delta)

    async def whole(self) -> list[Message]:
        """The same answer in one piece: a message per choice. Raises as `parts` does."""
        messages = [Message(index=index) for index in range(self.job.n)]
        async with aclosing(self.parts()) as parts:
            async for part in parts:
                messages[part.index].add(part)
        return messages


@contextmanager
def _field_names(request: ChatRequest) -> Iterator[None]:
    """The engine speaks of prompts and sampling parameters; the caller knows the request's fields."""
    names = {"prompt": "messages", "max_tokens": _limit_name(request)}
    if request.top_logprobs is not None:
        names["logprobs"] = "top_logprobs"
    try:
        with field_name(request):
            yield
    except InvalidRequest as error:
        error.param = error.param and names.get(error.param, error.param)
        raise


def _limit_name(request: ChatRequest) -> str:
    return "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"


def _check(request: ChatRequest) -> None:
    if request.top_logprobs and not request.logprobs:
        message = "'top_logprobs' is only allowed when 'logprobs' is true."
        raise InvalidRequest(message, param="top_logprobs", code="invalid_value")
    if request.tool_choice not in (None, "none", "auto"):
        message = "Unsupported parameter: 'tool_choice'. This server does not support tools yet."
        raise InvalidRequest(message, param="tool_choice", code="unsupported_parameter")
    check_common(request)


async def _job(call: Call, engine: Engine, request: ChatRequest) -> Job:
    text = await render_chat(
        engine,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        template_kwargs=request.chat_template_kwargs,
    )
    _, prompt = await engine.encode(text, add_special_tokens=False)
    limit = request.max_completion_tokens or request.max_tokens
    check_room(engine, len(prompt), request, limit, _limit_name(request))
    params: SamplingParams | BeamSearchParams
    if request.use_beam_search:
        params = beam_params(request, max_tokens=limit or max(1, engine.max_model_len - len(prompt)))
    else:
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        params = sampling_params(request, engine, max_tokens=limit, logprobs=logprobs)
    return Job(
        request_id=f"chatcmpl-{call.request_id}",
        prompt_token_ids=prompt,
        params=params,
        n=request.n or 1,
        priority=request.priority or 0,
        cache_salt=request.cache_salt,
    )


def _part(delta: Delta) -> Part:
    return Part(
        index=delta.index,
        content=delta.text,
        token_ids=delta.token_ids,
        logprobs=delta.logprobs,
        finish_reason=delta.finish_reason,
        stop_reason=delta.stop_reason,
        opening=delta.opening,
    )
