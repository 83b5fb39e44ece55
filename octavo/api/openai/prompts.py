"""From what callers send as prompts and messages to texts and token ids that an engine encodes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import UNSET

from octavo.api import tool_prompt
from octavo.api.limits import PROMPTS, TOKENIZED_CHARACTERS
from octavo.api.openai.types import ChatMessage, ContentPart, Prompt, ToolCall
from octavo.errors import InvalidRequest
from octavo.face import ChatTemplate, Engine

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_REASONING = ("reasoning_content", "reasoning", "thinking")  # the names that templates know it by
_WANTS_SHORT_IDS = "length 9"  # what Mistral's templates say of the ids of calls
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_RESERVED = frozenset(("messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize",
                       "chat_template", "bos_token", "eos_token"))  # fmt: skip


def split_prompts(prompt: Prompt, param: str = "prompt", most: int = PROMPTS) -> list[str | list[int]]:
    """A prompt field holds one text, texts, one list of ids, or lists of ids. Raises InvalidRequest."""
    if isinstance(prompt, str):
        prompts: list[Any] = [prompt]
    elif all(isinstance(item, int) for item in prompt):
        prompts = [prompt]
    else:
        prompts = list(prompt)
        kinds = {type(item) for item in prompts}
        if len(kinds) > 1 or int in kinds:
            message = f"Invalid '{param}': a list must hold only strings, only token ids, or only lists of token ids."
            raise InvalidRequest(message, param=param, code="invalid_type")
    if len(prompts) > most:
        message = f"Invalid '{param}': at most {most} {param}s in one request, not {len(prompts)}."
        raise InvalidRequest(message, param=param, code="array_above_max_length")
    if not all(prompts):
        raise InvalidRequest(f"Invalid '{param}': must not be empty.", param=param, code="invalid_value")
    return prompts


async def tokens_of(engine: Engine, text: str, *, add_special_tokens: bool, param: str) -> list[int]:
    """A text's tokens, be they more than the context has. Raises InvalidRequest, which names `param`."""
    if len(text) > TOKENIZED_CHARACTERS:
        message = f"Invalid '{param}': must have at most {TOKENIZED_CHARACTERS} characters."
        raise InvalidRequest(message, param=param, code="string_above_max_length")
    return await asyncio.to_thread(engine.tokenizer.encode, text, add_special_tokens)


async def render_chat(
    engine: Engine,
    messages: Sequence[ChatMessage],
    *,
    add_generation_prompt: bool | None,
    continue_final_message: bool | None,
    template_kwargs: dict[str, Any] | None,
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    """The messages in the model's chat template, which writes special tokens itself. Raises InvalidRequest.

    tools: as templates take them. Where the template knows nothing of tools, they and past calls are put into words.
    """
    if add_generation_prompt and continue_final_message:
        message = "'add_generation_prompt' and 'continue_final_message' exclude each other."
        raise InvalidRequest(message, param="continue_final_message", code="invalid_value")
    for name in template_kwargs or ():
        if name in _RESERVED:
            param = f"chat_template_kwargs.{name}"
            raise InvalidRequest(f"Unsupported parameter: '{param}'.", param=param, code="unsupported_parameter")
    rendered = [_template_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    _name_results(rendered)
    options = {
        "add_generation_prompt": not continue_final_message if add_generation_prompt is None else add_generation_prompt,
        "continue_final_message": bool(continue_final_message),
        **(template_kwargs or {}),
    }
    return await asyncio.to_thread(_render, engine.chat_template, rendered, tools, options)  # it may take its time


def _render(
    template: ChatTemplate, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], options: dict[str, Any]
) -> str:
    """With the tools as the template has them, or else in words."""
    if tools and "tools" in (template.source or ""):
        text = _accepted(template, messages, {**options, "tools": tools})
        if all(tool["function"]["name"] in text for tool in tools):
            return text
    if tools:
        messages = tool_prompt.taught(messages, tools)
    return _accepted(template, messages, options)


def _accepted(template: ChatTemplate, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """The messages in the first form of theirs that the template accepts. Raises the refusal of the usual form."""
    refusal: InvalidRequest | None = None
    for form in _forms(messages, template.source or ""):
        try:
            return template.render(form, **options)
        except InvalidRequest as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _forms(messages: list[dict[str, Any]], source: str) -> Iterator[list[dict[str, Any]]]:
    """The usual form, then others that some templates want: templates were written for different conventions."""
    called = any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
    if called and "tool_calls" not in source:
        messages, called = tool_prompt.spelled_out(messages), False
    if called and _WANTS_SHORT_IDS in source:
        messages = [_with_short_ids(message) for message in messages]
    yield messages
    if called:
        yield [_with_texts(message) for message in messages]
    if messages[0]["role"] == "system":
        yield tool_prompt.without_system(messages)


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    """Mistral's templates accept ids of nine letters and digits only."""
    changed = dict(message)
    if "tool_call_id" in message:
        changed["tool_call_id"] = _short_id(message["tool_call_id"])
    if "tool_calls" in message:
        changed["tool_calls"] = [{**call, "id": _short_id(call["id"])} for call in message["tool_calls"]]
    return changed


def _short_id(given: str | None) -> str:
    text = given or ""
    return text if _SHORT_ID.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:9]


def _with_texts(message: dict[str, Any]) -> dict[str, Any]:
    """DeepSeek's templates take the arguments of calls as texts."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _as_text(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _template_message(message: ChatMessage, place: str) -> dict[str, Any]:
    """A message as templates expect it: content as one string, tool arguments as objects."""
    if message.role not in _ROLES:
        listed = ", ".join(repr(role) for role in _ROLES)
        raise InvalidRequest(
            f"Invalid '{place}.role': {message.role[:64]!r} is none of {listed}.",
            param=f"{place}.role",
            code="invalid_value",
        )
    rendered: dict[str, Any] = {"role": _ROLES[message.role], "content": _content(message, f"{place}.content")}
    if message.name is not None:
        rendered["name"] = message.name
    if message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        rendered["tool_calls"] = [_template_tool_call(call) for call in message.tool_calls]
    elif message.function_call is not None:
        rendered["tool_calls"] = [_template_tool_call(ToolCall(id=None, function=message.function_call))]
    reasoning = message.reasoning_content if message.reasoning is None else message.reasoning
    if reasoning is not None:
        rendered |= dict.fromkeys(_REASONING, reasoning)
    return rendered


def _name_results(messages: Sequence[dict[str, Any]]) -> None:
    """Some templates want to know which tool gave a result; requests need only say which call it is of."""
    names: dict[Any, str] = {}
    for message in messages:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool" and (name := names.get(message.get("tool_call_id"))) is not None:
            message.setdefault("name", name)


def _content(message: ChatMessage, place: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_part_text(part, f"{place}[{index}]") for index, part in enumerate(content))
    if message.role == "assistant" and (message.tool_calls or message.function_call):
        return ""
    if content is UNSET:
        raise InvalidRequest(f"Missing required parameter: '{place}'.", param=place, code="missing_required_parameter")
    text = f"Invalid type for '{place}': expected one of a string or an array of objects, but got null instead."
    raise InvalidRequest(text, param=place, code="invalid_type")


def _part_text(part: ContentPart, place: str) -> str:
    if part.type != "text":
        message = f"Invalid '{place}.type': this model reads only 'text' parts, not {part.type[:64]!r}."
        raise InvalidRequest(message, param=f"{place}.type", code="invalid_value")
    if part.text is None:
        place = f"{place}.text"
        raise InvalidRequest(f"Missing required parameter: '{place}'.", param=place, code="missing_required_parameter")
    return part.text


def _template_tool_call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = call.function.arguments  # what a model wrote need not be JSON
    return {
        "id": call.id,
        "type": call.type or "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }
