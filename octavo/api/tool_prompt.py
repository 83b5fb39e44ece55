"""Tools in words, for chat templates that know none: a system prompt that lists them, calls and results as text.

What it asks for is what `octavo.api.tool_calls.generic` reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

Message = dict[str, Any]

_INSTRUCTIONS = """\
You can call functions to help with the user's request. These are the functions, as JSON:
<tools>
{tools}
</tools>

To call a function, write its name and arguments as a JSON object between <tool_call> tags:
<tool_call>
{{"name": "function name", "arguments": {{"argument name": "value"}}}}
</tool_call>
Write one pair of tags for each call. If no function is needed, just answer."""


def taught(messages: Sequence[Message], tools: Sequence[Message]) -> list[Message]:
    """The messages with the tools in the system's, or as it, and with all calls spelled out."""
    messages, text = spelled_out(messages), _instructions(tools)
    if messages and messages[0]["role"] == "system":
        return [_joined(messages[0], messages[0]["content"], text), *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def teaches(prompt: str, tools: Sequence[Message]) -> bool:
    """Whether the prompt has the tools in these words."""
    return _instructions(tools) in prompt


def _instructions(tools: Sequence[Message]) -> str:
    return _INSTRUCTIONS.format(tools="\n".join(_json(tool["function"]) for tool in tools))


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The system's message at the beginning of the user's first, for templates that know no system."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return list(messages)
    return [_joined(messages[1], messages[0]["content"], messages[1]["content"]), *messages[2:]]


def spelled_out(messages: Iterable[Message]) -> list[Message]:
    """Calls as the assistant's text, results as the user's, together with what the user says next."""
    found: list[Message] = []
    after_result = False
    for message in messages:
        spelled = _spelled_out(message)
        if after_result and spelled["role"] == "user":
            found[-1] = _joined(spelled, found[-1]["content"], spelled["content"])
        else:
            found.append(spelled)
        after_result = message["role"] == "tool"
    return found


def _spelled_out(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    called = [{key: call["function"][key] for key in ("name", "arguments")} for call in message["tool_calls"]]
    written = [f"<tool_call>\n{_json(call)}\n</tool_call>" for call in called]
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join(filter(None, [message["content"], *written]))}


def _joined(message: Message, *texts: str) -> Message:
    return {**message, "content": "\n\n".join(filter(None, texts))}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
