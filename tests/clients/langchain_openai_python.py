"""`langchain-openai`: invoke, stream, a loop with a tool, structured output, embeddings."""

from __future__ import annotations

import sys

from checks import check
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

URL, MODEL, EMBEDDER = sys.argv[1:4]
model = ChatOpenAI(base_url=f"{URL}/v1", api_key="none", model=MODEL, temperature=0, max_tokens=120, max_retries=0)


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=30)
    age: int = Field(ge=0, le=130)


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"18 degrees in {city}"


with check("invoke and stream say the same"):
    whole = model.invoke("Name three rivers.").content
    assert whole
    assert whole == "".join(str(piece.content) for piece in model.stream("Name three rivers."))

with check("a loop with a tool"):
    asked = [HumanMessage("Weather in Paris?")]
    call = model.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False).invoke(asked)
    (wanted,) = call.tool_calls
    result = get_weather.invoke(wanted)
    assert isinstance(result, ToolMessage)
    assert model.invoke([*asked, call, result]).content

for method in ("json_schema", "function_calling"):
    with check(f"with_structured_output, method {method}"):
        person = model.with_structured_output(Person, method=method).invoke("Invent a person.")
        assert isinstance(person, Person)

with check("embeddings"):
    embedder = OpenAIEmbeddings(base_url=f"{URL}/v1", api_key="none", model=EMBEDDER, check_embedding_ctx_length=False)
    assert len(embedder.embed_documents(["one", "two"])) == 2
