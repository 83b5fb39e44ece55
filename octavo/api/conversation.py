"""One chat turn, however it was asked for: an OpenAI chat completion, a response, Anthropic's messages, Ollama's chat.

Every dialect builds a `ChatRequest`, prepares a `Turn` from it and says in its own JSON what `Turn.parts` or
`Turn.whole` give: a stream and an answer in one piece are the same parts, sent or folded. Errors name the fields of
`ChatRequest`. Knows neither HTTP nor any dialect's answers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Self

from msgspec.structs import replace

from octavo.api.desk import Call
from octavo.api.generation import Job, deltas
from octavo.api.markup import Markup
from octavo.api.openai.prompts import render_chat, tokens_of
from octavo.api.openai.sampling import beam_params, check_common, check_room, sampling_params
from octavo.api.openai.structured import field_name
from octavo.api.openai.tools import ToolUse, tool_use
from octavo.api.openai.types import ChatRequest
from octavo.api.parts import Choice, Message, Part, ToolCall, ToolCallPart
from octavo.errors import InvalidRequest
from octavo.face import Engine, Served
from octavo.request import BeamSearchParams, SamplingParams

__all__ = ["Message", "Part", "ToolCall", "ToolCallPart", "Turn"]


class Turn:
    """A chat request that is ready to run, once: either by `parts` or by `whole`.

    name: the model's name to answer with. engine: the model, this call's until its answer is over. Tokens are counted
    in `call.tally`.
    """

    def __init__(self, call: Call, request: ChatRequest, served: Served, job: Job, markup: Markup) -> None:
        self.call = call
        self.request = request
        self.name = served.name
        self.engine = served.engine
        self.job = job
        self._markup = markup

    @classmethod
    async def prepare(cls, call: Call, request: ChatRequest) -> Self:
        """Check the request, lease its model, and put its messages into the model's chat template.

        Raises InvalidRequest, ContextTooLong, ModelNotFound, Overloaded or EngineDead.
        """
        _check(request)
        tools = tool_use(request)
        call.deadline.shorten(request.timeout)
        served, prompt = await _rendered(call, request, tools)
        with _field_names(request):
            markup = Markup.of(served.engine, request, tools, prompt)
            return cls(call, request, served, await _job(call, served.engine, request, prompt, markup), markup)

    def allow(self, max_tokens: int) -> None:
        """End the answer after so many tokens, which may be more than the context has room for."""
        self.job.params = replace(self.job.params, max_tokens=max_tokens)

    async def parts(self) -> AsyncGenerator[Part, None]:
        """The answer as it comes, all choices interleaved. Raises what the engine does; closing it aborts the turn."""
        shared = (self._markup, self.engine.tokenizer, self.call.tally, self.job.request_id)
        choices = [Choice(index, *shared) for index in range(self.job.n)]
        with _field_names(self.request):
            async with aclosing(deltas(self.call, self.engine, [self.job])) as source:
                async for delta in source:
                    for part in choices[delta.index].take(delta):
                        yield part

    async def whole(self) -> list[Message]:
        """The same answer in one piece: a message per choice. Raises as `parts` does."""
        messages = [Message(index=index) for index in range(self.job.n)]
        async with aclosing(self.parts()) as parts:
            async for part in parts:
                messages[part.index].add(part)
        return messages


async def count_tokens(call: Call, request: ChatRequest) -> int:
    """How many tokens a conversation is, be it longer than the context. Raises as `Turn.prepare` does."""
    served, prompt = await _rendered(call, request, tool_use(request))
    return len(await tokens_of(served.engine, prompt, add_special_tokens=False, param="messages"))


async def _rendered(call: Call, request: ChatRequest, tools: ToolUse | None) -> tuple[Served, str]:
    """The model that is asked, this call's from now on, and the messages in its chat template."""
    served = await call.model(request.model, request.user, task="generate")
    engine = served.engine
    if request.documents and "documents" not in (engine.chat_template.source or ""):
        message = "Unsupported parameter: 'documents'. This model's chat template takes none."
        raise InvalidRequest(message, param="documents", code="unsupported_parameter")
    prompt = await render_chat(
        engine,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        template_kwargs=_template_kwargs(request),
        tools=tools.shown if tools else (),
    )
    return served, prompt


@contextmanager
def _field_names(request: ChatRequest) -> Iterator[None]:
    """The engine speaks of prompts and sampling parameters; the caller knows the request's fields."""
    names = {"prompt": "messages", "max_tokens": _limit_name(request)}
    if request.structured_outputs is None:
        names["structured_outputs"] = "tools"
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
    check_common(request)


def _template_kwargs(request: ChatRequest) -> dict[str, Any]:
    """What the caller tells the chat template; an effort of "none" also in the words of those that know on and off."""
    chosen: dict[str, Any] = {}
    if request.reasoning_effort is not None:
        chosen["reasoning_effort"] = request.reasoning_effort
        if request.reasoning_effort == "none":
            chosen["enable_thinking"] = False
    if request.documents:
        chosen["documents"] = request.documents
    return {**chosen, **(request.chat_template_kwargs or {})}


async def _job(call: Call, engine: Engine, request: ChatRequest, text: str, markup: Markup) -> Job:
    _, prompt = await engine.encode(text, add_special_tokens=False)
    limit = request.max_completion_tokens or request.max_tokens
    check_room(engine, len(prompt), request, limit, _limit_name(request))
    params: SamplingParams | BeamSearchParams
    if request.use_beam_search and markup.structure is not None:
        message = "Required tool calls cannot be combined with use_beam_search."
        raise InvalidRequest(message, param="use_beam_search", code="unsupported_parameter")
    if request.use_beam_search:
        params = beam_params(request, max_tokens=limit or max(1, engine.max_model_len - len(prompt)))
    else:
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        changes = markup.sampling(engine.tokenizer)
        params = sampling_params(request, engine, max_tokens=limit, logprobs=logprobs, **changes)
    return Job(
        request_id=f"chatcmpl-{call.request_id}",
        prompt_token_ids=prompt,
        params=params,
        n=request.n or 1,
        priority=request.priority or 0,
        cache_salt=request.cache_salt,
    )
