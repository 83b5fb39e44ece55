"""The `ollama` package: chat, generate, embed, and what is asked about models."""

from __future__ import annotations

import json
import sys
from typing import Any

import jsonschema
import ollama
from checks import PERSON, WEATHER, check, raised

URL, MODEL, EMBEDDER = sys.argv[1:4]
client = ollama.Client(host=URL)
QUESTION: list[Any] = [{"role": "user", "content": "Name three rivers."}]
OPTIONS = {"temperature": 0, "num_predict": 40}

with check("chat, whole and streamed, say the same"):
    whole = client.chat(MODEL, QUESTION, options=OPTIONS)
    pieces = list(client.chat(MODEL, QUESTION, options=OPTIONS, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert pieces[-1].done
    assert pieces[-1].eval_count == whole.eval_count
    assert (pieces[-1].eval_duration or 0) > 0

with check("generate, whole and streamed, say the same"):
    told = client.generate(MODEL, "Name three rivers.", options=OPTIONS)
    assert told.response == "".join(
        piece.response for piece in client.generate(MODEL, "Name three rivers.", options=OPTIONS, stream=True)
    )

with check("format: a schema"):
    answer = client.chat(
        MODEL, [{"role": "user", "content": "Invent a person."}], format=PERSON, options={"num_predict": 300}
    )
    jsonschema.validate(json.loads(answer.message.content or ""), PERSON)

with check("tools are taken"):
    answer = client.chat(MODEL, QUESTION, tools=[{"type": "function", "function": WEATHER}], options=OPTIONS)
    assert answer.done

with check("list, show and ps"):
    assert any((model.model or "").startswith(MODEL) for model in client.list().models)
    assert client.show(MODEL).details is not None
    assert any((model.model or "").startswith(MODEL) for model in client.ps().models)

with check("embed"):
    assert len(client.embed(EMBEDDER, ["one", "two"]).embeddings) == 2

with check("an unknown model is a ResponseError with 404"):
    error = raised(ollama.ResponseError, lambda: client.chat("nobody", QUESTION))
    assert error.status_code == 404
