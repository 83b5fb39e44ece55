"""Load on a server with OpenAI's /v1/completions: every server gets the same bytes from the same few lines.

The client shares the cores with what it measures, so it parses no more of a stream than when it began and how many
tokens its last event counts. Knows nothing of which server answers.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from processes import PATIENCE_S

TAIL = 4096  # bytes of a stream that surely hold its usage
USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')


@dataclass(frozen=True)
class Answer:
    first_s: float
    tokens: int


@dataclass(frozen=True)
class Result:
    tokens_per_s: float
    first_ms: float  # median time to the first token


async def ask(port: int, body: bytes) -> Answer:
    """One streaming request on a connection of its own. Raises RuntimeError for an answer without a count of tokens."""
    began = perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    first, tail = 0.0, b""
    while piece := await reader.read(1 << 16):
        tail += piece
        if not first and b"data:" in tail:
            first = perf_counter() - began
        tail = tail[-TAIL:]
        if b"data: [DONE]" in tail:
            break
    writer.close()
    counts = USAGE.findall(tail)
    if not counts:
        raise RuntimeError(f"no usage in the answer, which ends with {tail[-1000:].decode(errors='replace')}")
    return Answer(first, int(counts[-1]))


async def _run(port: int, bodies: list[bytes], max_tokens: int, streams: int) -> Result:
    waiting: Iterator[bytes] = iter(bodies)

    async def stream() -> list[Answer]:
        return [await ask(port, body) for body in waiting]

    began = perf_counter()
    ended = await asyncio.wait_for(asyncio.gather(*(stream() for _ in range(streams))), PATIENCE_S)
    seconds = perf_counter() - began
    answers = [answer for stream_answers in ended for answer in stream_answers]
    if wrong := [answer.tokens for answer in answers if answer.tokens != max_tokens]:
        raise RuntimeError(f"{max_tokens} tokens were asked for, an answer counts {wrong[0]}")
    return Result(len(answers) * max_tokens / seconds, 1000 * median(answer.first_s for answer in answers))


def load(port: int, model: str, prompts: list[list[int]], max_tokens: int, streams: int) -> Result:
    """Send the prompts over `streams` streams, each sending its next when its last has ended."""
    settings = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    bodies = [json.dumps({**settings, "prompt": prompt}).encode() for prompt in prompts]
    return asyncio.run(_run(port, bodies, max_tokens, streams))
