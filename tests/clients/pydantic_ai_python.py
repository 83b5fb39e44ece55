"""`pydantic-ai`: text, streams, structured output by schema and by tool, a loop with a tool."""

from __future__ import annotations

import asyncio
import sys

from checks import check
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

URL, MODEL = sys.argv[1:3]
model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key="none"))
SETTINGS = ModelSettings(temperature=0, max_tokens=200)


class Person(BaseModel):
    name: str = Field(max_length=30)
    age: int = Field(ge=0, le=130)


async def streamed() -> str:
    async with Agent(model, model_settings=SETTINGS).run_stream("Name three rivers.") as result:
        return "".join([piece async for piece in result.stream_text(delta=True)])


with check("run and run_stream say the same"):
    assert asyncio.run(streamed()) == Agent(model, model_settings=SETTINGS).run_sync("Name three rivers.").output

with check("structured output by schema (NativeOutput)"):
    agent = Agent(model, output_type=NativeOutput(Person), model_settings=SETTINGS)
    assert isinstance(agent.run_sync("Invent a person.").output, Person)

with check("structured output by a tool (ToolOutput)"):
    agent = Agent(model, output_type=ToolOutput(Person), model_settings=SETTINGS)
    assert isinstance(agent.run_sync("Invent a person.").output, Person)

with check("a loop with a tool that may be called") as notes:
    calls: list[str] = []
    helper = Agent(model, output_type=ToolOutput(Person), model_settings=SETTINGS, retries=3)

    @helper.tool_plain
    def birth_year(name: str) -> int:
        """The year a person was born in."""
        calls.append(name)
        return 1990

    assert isinstance(helper.run_sync("How old is Ada? Use birth_year, then answer.").output, Person)
    notes.append(f"{len(calls)} calls")
