"""OpenAI's Python client on tools and reasoning, whole, streamed and with its helpers, against a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
from fake_engine import FakeEngine
from fake_server import run, serving
from formats import TEXTS
from pydantic import BaseModel

from octavo.config import EngineConfig

USER: Any = [{"role": "user", "content": "Weather in Köln?"}]


class weather(BaseModel):  # noqa: N801  the tool's name
    """Of a city."""

    city: str
    days: int


class time(BaseModel):  # noqa: N801
    """Now."""


TOOLS: Any = [openai.pydantic_function_tool(weather), openai.pydantic_function_tool(time)]
Scenario = Callable[[openai.AsyncOpenAI], Awaitable[None]]


def against(text: str, scenario: Scenario, **config: Any) -> None:
    engine = FakeEngine(reply=lambda *_: text, max_model_len=8192, config=EngineConfig.of(**config))

    async def served() -> None:
        async with (
            serving(engine) as (_, port),
            openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
        ):
            await scenario(client)

    run(served)


@pytest.mark.parametrize("name", TEXTS)
def test_parsed_and_streamed_tool_calls(name: str) -> None:
    async def scenario(client: openai.AsyncOpenAI) -> None:
        whole = await client.chat.completions.parse(model="fake-model", messages=USER, tools=TOOLS)
        async with client.chat.completions.stream(model="fake-model", messages=USER, tools=TOOLS) as stream:
            events = [event async for event in stream]
            streamed = await stream.get_final_completion()
        for completion in (whole, streamed):
            choice = completion.choices[0]
            assert choice.finish_reason == "tool_calls"
            assert choice.message.tool_calls is not None
            assert [call.function.parsed_arguments for call in choice.message.tool_calls] == [
                weather(city="Köln", days=2),
                time(),
            ]
        assert streamed.choices[0].message.content == whole.choices[0].message.content or name == "llama3_json"
        pieces = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
        assert json.loads("".join(piece.arguments_delta for piece in pieces if piece.name == "weather"))
        done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
        assert [event.name for event in done] == ["weather", "time"]

    against(TEXTS[name], scenario, tool_call_parser=name)


def test_reasoning_and_its_count() -> None:
    async def scenario(client: openai.AsyncOpenAI) -> None:
        whole: Any = await client.chat.completions.create(model="fake-model", messages=USER)
        assert whole.choices[0].message.reasoning_content == "Hm, hm."
        assert whole.choices[0].message.content == "Yes."
        assert whole.usage.completion_tokens_details.reasoning_tokens == len("Hm, hm.")
        said = {"reasoning_content": "", "content": ""}
        stream: Any = await client.chat.completions.create(model="fake-model", messages=USER, stream=True)
        async for chunk in stream:
            for field in said:
                said[field] += getattr(chunk.choices[0].delta, field, None) or ""
        assert said == {"reasoning_content": "Hm, hm.", "content": "Yes."}

    against("<think>Hm, hm.</think>\n\nYes.", scenario)


def test_a_conversation_with_a_tool() -> None:
    """What the client was given goes back as it is."""

    async def scenario(client: openai.AsyncOpenAI) -> None:
        first = await client.chat.completions.create(model="fake-model", messages=USER, tools=TOOLS)
        message = first.choices[0].message
        assert message.tool_calls
        results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "3 °C"} for call in message.tool_calls]
        history = [*USER, message.model_dump(exclude_none=True), *results]
        second = await client.chat.completions.create(model="fake-model", messages=history, tools=TOOLS)
        assert second.usage is not None
        assert first.usage is not None
        assert second.usage.prompt_tokens > first.usage.prompt_tokens

    against(TEXTS["hermes"], scenario)
