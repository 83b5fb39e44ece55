"""The `openai` package: chat, streams, tools, structured outputs, responses, embeddings, files and batches."""

from __future__ import annotations

import io
import json
import sys
import time
from typing import Any

import jsonschema
import openai
from checks import PERSON, WEATHER, check, raised
from pydantic import BaseModel, Field

URL, MODEL, EMBEDDER = sys.argv[1:4]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
QUESTION: list[Any] = [{"role": "user", "content": "Name three rivers."}]
FIXED: dict[str, Any] = {"model": MODEL, "temperature": 0.7, "seed": 7, "max_tokens": 60}
TOOLS: list[Any] = [{"type": "function", "function": WEATHER}]


class Person(BaseModel):
    name: str = Field(max_length=30)
    age: int = Field(ge=0, le=130)


with check("models.list and models.retrieve"):
    names = [model.id for model in client.models.list()]
    assert MODEL in names
    assert client.models.retrieve(MODEL).id == MODEL

with check("chat, whole and streamed, say the same"):
    whole = client.chat.completions.create(messages=QUESTION, **FIXED)
    pieces = list(
        client.chat.completions.create(messages=QUESTION, stream=True, stream_options={"include_usage": True}, **FIXED)
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens

with check("chat.completions.stream accumulates"), client.chat.completions.stream(messages=QUESTION, **FIXED) as stream:
    final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content

with check("logprobs, n, stop and logit_bias"):
    several = client.chat.completions.create(
        messages=QUESTION, n=3, logprobs=True, top_logprobs=3, stop=["\n"], logit_bias={"0": -100}, **FIXED
    )
    assert len(several.choices) == 3
    for choice in several.choices:
        assert choice.logprobs is not None
        assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content or [])
        assert "\n" not in (choice.message.content or "")

with check("a required tool is called with arguments that fit its schema"):
    called = client.chat.completions.create(
        messages=[{"role": "user", "content": "Weather in Paris?"}],
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        **{**FIXED, "max_tokens": 200},
    )
    (call,) = called.choices[0].message.tool_calls or []
    assert called.choices[0].finish_reason == "tool_calls"
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["parameters"])

with (
    check("streamed tool arguments add up to the whole ones"),
    client.chat.completions.stream(
        messages=[{"role": "user", "content": "Weather in Paris?"}],
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        parallel_tool_calls=False,
        **{**FIXED, "max_tokens": 200},
    ) as stream,
):
    streamed = stream.get_final_completion().choices[0].message.tool_calls or []
    assert streamed[0].function.name == "get_weather"
    jsonschema.validate(json.loads(streamed[0].function.arguments), WEATHER["parameters"])

with check("a tool's result goes back"):
    answered = client.chat.completions.create(
        messages=[
            {"role": "user", "content": "Weather in Paris?"},
            {"role": "assistant", "tool_calls": [call.model_dump()]},
            {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, sunny"},
        ],
        tools=TOOLS,
        tool_choice="none",
        **FIXED,
    )
    assert answered.choices[0].message.content
    assert not answered.choices[0].message.tool_calls

with check("chat.completions.parse gives a pydantic object"):
    parsed = client.chat.completions.parse(
        messages=[{"role": "user", "content": "Invent a person."}], response_format=Person, **FIXED
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)

with check("response_format json_schema is strict"):
    answer = client.chat.completions.create(
        messages=[{"role": "user", "content": "Invent a person."}],
        response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}},
        **{**FIXED, "max_tokens": 300},
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)

with check("response_format json_object"):
    answer = client.chat.completions.create(
        messages=[{"role": "user", "content": "Reply in JSON with a key `river`."}],
        response_format={"type": "json_object"},
        **{**FIXED, "max_tokens": 400},
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)

with check("completions with echo and logprobs"):
    completion = client.completions.create(prompt="The Nile is", echo=True, logprobs=2, **FIXED)
    assert completion.choices[0].text.startswith("The Nile is")

with check("responses.create and its stream"):
    response = client.responses.create(
        model=MODEL, input="Name three rivers.", temperature=0, max_output_tokens=40, store=False
    )
    assert response.output_text
    events = list(
        client.responses.create(
            model=MODEL, input="Name three rivers.", temperature=0, max_output_tokens=40, store=False, stream=True
        )
    )
    assert (
        "".join(event.delta for event in events if event.type == "response.output_text.delta") == response.output_text
    )
    assert events[0].type == "response.created"
    assert events[-1].type == f"response.{response.status}"

with check("responses with a function call"):
    response = client.responses.create(
        model=MODEL,
        input="Weather in Paris?",
        tools=[{"type": "function", "strict": True, **WEATHER}],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=200,
    )
    (item,) = [item for item in response.output if item.type == "function_call"]
    jsonschema.validate(json.loads(item.arguments), WEATHER["parameters"])

with check("responses.parse gives a pydantic object"):
    parsed_response = client.responses.parse(
        model=MODEL, input="Invent a person.", text_format=Person, max_output_tokens=200
    )
    assert isinstance(parsed_response.output_parsed, Person)

with check("embeddings: likeness, base64, dimensions"):
    vectors = client.embeddings.create(
        model=EMBEDDER, input=["A cat sits.", "A kitten is sitting.", "Stock prices fell."]
    ).data
    first, near, far = ([float(number) for number in vector.embedding] for vector in vectors)
    assert sum(map(float.__mul__, first, near)) > sum(map(float.__mul__, first, far)) + 0.2
    short = client.embeddings.create(model=EMBEDDER, input="A cat sits.", dimensions=64)
    assert len(short.data[0].embedding) == 64

with check("files and batches"):
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": QUESTION, "max_tokens": 8},
        }
        for number in range(20)
    ]
    upload = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
    file = client.files.create(file=("lines.jsonl", upload), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    for _ in range(600):
        batch = client.batches.retrieve(batch.id)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            break
        time.sleep(0.2)
    assert batch.status == "completed", batch
    assert batch.output_file_id is not None
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(answer["custom_id"] for answer in answers) == sorted(line["custom_id"] for line in lines)
    assert all(answer["response"]["status_code"] == 200 for answer in answers)

with check("a mistake is a BadRequestError that names the field"):
    error = raised(
        openai.BadRequestError, lambda: client.chat.completions.create(messages=QUESTION, model=MODEL, top_p=2.0)
    )
    assert error.param == "top_p"

with check("an unknown model is a NotFoundError"):
    raised(openai.NotFoundError, lambda: client.chat.completions.create(messages=QUESTION, model="nobody"))
