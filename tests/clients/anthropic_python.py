"""The `anthropic` package: messages, streams, tools, counting tokens."""

from __future__ import annotations

import sys
from typing import Any

import anthropic
import jsonschema
from checks import WEATHER, check, raised

URL, MODEL = sys.argv[1:3]
client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
FIXED: Any = {"extra_body": {"temperature": 0}}  # the package has no such argument any more
QUESTION: list[Any] = [{"role": "user", "content": "Name three rivers."}]
TOOL: Any = {"name": WEATHER["name"], "description": WEATHER["description"], "input_schema": WEATHER["parameters"]}

with check("messages.create and messages.stream say the same"):
    whole = client.messages.create(model=MODEL, max_tokens=40, messages=QUESTION, **FIXED)
    with client.messages.stream(model=MODEL, max_tokens=40, messages=QUESTION, **FIXED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.stop_reason == whole.stop_reason

with check("system prompts and stop sequences"):
    stopped = client.messages.create(
        model=MODEL, max_tokens=60, system="You are brief.", stop_sequences=["."], messages=QUESTION
    )
    assert stopped.stop_reason in ("stop_sequence", "max_tokens", "end_turn")
    assert "." not in stopped.content[0].text

with check("a tool is used, and its result goes back"):
    used = client.messages.create(
        model=MODEL,
        max_tokens=200,
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        messages=[{"role": "user", "content": "Weather in Paris?"}],
    )
    assert used.stop_reason == "tool_use"
    (block,) = [block for block in used.content if block.type == "tool_use"]
    jsonschema.validate(block.input, WEATHER["parameters"])
    after = client.messages.create(
        model=MODEL,
        max_tokens=40,
        tools=[TOOL],
        tool_choice={"type": "none"},
        messages=[
            {"role": "user", "content": "Weather in Paris?"},
            {"role": "assistant", "content": [block.model_dump()]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "18 degrees"}]},
        ],
    )
    assert after.content[0].text

with (
    check("a streamed tool use has the same input"),
    client.messages.stream(
        model=MODEL,
        max_tokens=200,
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
        messages=[{"role": "user", "content": "Weather in Paris?"}],
    ) as stream,
):
    (block,) = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    jsonschema.validate(block.input, WEATHER["parameters"])

with check("messages.count_tokens counts what an answer's usage says"):
    counted = client.messages.count_tokens(model=MODEL, messages=QUESTION)
    usage = whole.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)

with check("a mistake is a BadRequestError"):
    error = raised(
        anthropic.BadRequestError, lambda: client.messages.create(model=MODEL, max_tokens=0, messages=QUESTION)
    )
    assert "max_tokens" in str(error)
