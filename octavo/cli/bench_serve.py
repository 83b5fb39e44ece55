"""`octavo bench serve`: what clients of a running server see under load.

Any server with OpenAI's /v1/completions will do. Prompts are random token ids, outputs have a fixed length.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Any

from octavo.cli.event_client import ServerError, post_events
from octavo.cli.flags import Parser, number
from octavo.cli.measure import add_output_flags, count_flag, mean, percentile, random_prompts, write_json
from octavo.errors import ConfigError

USAGE = "[--base-url URL] [flags]"
DESCRIPTION = """\
Send random prompts to a running server and measure time to first token (TTFT), time per output token (TPOT),
inter-token latency (ITL), end-to-end latency (E2EL) and throughput.

  octavo bench serve --base-url http://127.0.0.1:8080 --num-prompts 100 --request-rate 4"""

_TOKEN_IDS = range(100, 1000)  # ordinary tokens in every vocabulary of use


@dataclass(slots=True)
class Sample:
    """One request as its client saw it. Times in seconds."""

    began: float
    first: float = 0.0
    ended: float = 0.0
    gaps: list[float] = field(default_factory=list)
    output_tokens: int = 0
    error: str | None = None

    @property
    def per_token(self) -> float:
        return (self.ended - self.first) / max(1, self.output_tokens - 1)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--base-url", default="http://127.0.0.1:8080", metavar="URL", help="(default: %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="default: the first of the server's /v1/models")
    parser.add_argument("--api-key", metavar="KEY", help="sent as Authorization: Bearer KEY")
    count_flag(parser, "--num-prompts", 100, "requests")
    count_flag(parser, "--input-len", 128, "tokens of each prompt")
    count_flag(parser, "--output-len", 128, "tokens generated for each prompt")
    parser.add_argument(
        "--request-rate",
        type=number(float),
        default=math.inf,
        metavar="X",
        help="requests a second on average, in Poisson intervals (default: inf, all at once)",
    )
    parser.add_argument("--max-concurrency", type=number(int), metavar="N", help="most requests at a time")
    parser.add_argument("--temperature", type=number(float), default=0.0, metavar="X", help="(default: %(default)s)")
    add_output_flags(parser)


def run(options: argparse.Namespace) -> int:
    if not options.request_rate > 0:
        raise ConfigError("--request-rate must be above 0")
    headers = {"authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    base = options.base_url.rstrip("/")
    model = options.model or first_model(base, headers)
    prompts = random_prompts(options.num_prompts, options.input_len, _TOKEN_IDS, options.bench_seed)
    bodies = [completion_body(model, prompt, options) for prompt in prompts]
    began = time.perf_counter()
    samples = asyncio.run(drive(f"{base}/v1/completions", bodies, headers, options))
    results = summarize(samples, options.input_len, time.perf_counter() - began)
    print(report(results))
    failures = [sample.error for sample in samples if sample.error is not None]
    if failures:
        print(f"first error: {failures[0]}")
    write_json(options.output_json, {"model_id": model, "request_rate": str(options.request_rate), **results})
    return 1 if len(failures) == len(samples) else 0


def completion_body(model: str, prompt: list[int], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": options.output_len,
        "temperature": options.temperature,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def first_model(base: str, headers: dict[str, str]) -> str:
    """Raises ConfigError if there is no server."""
    try:
        request = urllib.request.Request(f"{base}/v1/models", headers=headers)  # noqa: S310 (the user's own URL)
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return str(json.load(answer)["data"][0]["id"])
    except (OSError, ValueError, LookupError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ConfigError(f"no models at {base}/v1/models: {reason}; is the server running?") from None


async def drive(
    url: str, bodies: Sequence[dict[str, Any]], headers: dict[str, str], options: argparse.Namespace
) -> list[Sample]:
    """Send each request when its time has come."""
    slots = asyncio.Semaphore(options.max_concurrency) if options.max_concurrency else nullcontext()
    draw = random.Random(options.bench_seed)  # noqa: S311 (not for secrets)
    tasks = []
    for body in bodies:
        tasks.append(asyncio.create_task(send(url, body, headers, slots)))
        if math.isfinite(options.request_rate):
            await asyncio.sleep(draw.expovariate(options.request_rate))
    return await asyncio.gather(*tasks)


async def send(url: str, body: dict[str, Any], headers: dict[str, str], slots: Any) -> Sample:
    async with slots:
        sample = Sample(time.perf_counter())
        try:
            async with aclosing(post_events(url, body, headers)) as events:  # type: ignore[type-var]
                async for event in events:
                    note(sample, json.loads(event), time.perf_counter())
        except (OSError, EOFError, ValueError, ServerError) as error:
            sample.error = f"{type(error).__name__}: {error}"
        if not sample.first and sample.error is None:
            sample.error = "no token arrived"
        return sample


def note(sample: Sample, event: dict[str, Any], now: float) -> None:
    """What an event adds to a sample."""
    if "error" in event:
        raise ServerError(event["error"].get("message"))
    if event.get("usage"):
        sample.output_tokens = event["usage"]["completion_tokens"]
    if not event.get("choices"):
        return
    if not sample.first:
        sample.first = now
    else:
        sample.gaps.append(now - sample.ended)
    sample.ended = now


def summarize(samples: Sequence[Sample], input_len: int, duration: float) -> dict[str, Any]:
    good = [sample for sample in samples if sample.error is None]
    input_tokens, output_tokens = input_len * len(good), sum(sample.output_tokens for sample in good)
    results: dict[str, Any] = {
        "duration": duration,
        "completed": len(good),
        "failed": len(samples) - len(good),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(good) / duration,
        "output_throughput": output_tokens / duration,
        "total_token_throughput": (input_tokens + output_tokens) / duration,
    }
    times = {
        "ttft": [sample.first - sample.began for sample in good],
        "tpot": [sample.per_token for sample in good if sample.output_tokens > 1],
        "itl": [gap for sample in good for gap in sample.gaps],
        "e2el": [sample.ended - sample.began for sample in good],
    }
    for name, seconds in times.items():
        results[f"mean_{name}_ms"] = mean(seconds) * 1000
        results[f"median_{name}_ms"] = percentile(seconds, 50) * 1000
        results[f"p99_{name}_ms"] = percentile(seconds, 99) * 1000
    return results


def report(results: dict[str, Any]) -> str:
    lines = [f"{' Serving Benchmark Result ':=^50}"]
    counts = {
        "Successful requests:": results["completed"],
        "Failed requests:": results["failed"],
        "Benchmark duration (s):": f"{results['duration']:.2f}",
        "Total input tokens:": results["total_input_tokens"],
        "Total generated tokens:": results["total_output_tokens"],
        "Request throughput (req/s):": f"{results['request_throughput']:.2f}",
        "Output token throughput (tok/s):": f"{results['output_throughput']:.2f}",
        "Total token throughput (tok/s):": f"{results['total_token_throughput']:.2f}",
    }
    lines += [f"{name:<40} {value:<10}" for name, value in counts.items()]
    titles = {
        "ttft": "Time to First Token",
        "tpot": "Time per Output Token (excl. 1st token)",
        "itl": "Inter-token Latency",
        "e2el": "End-to-end Latency",
    }
    for name, title in titles.items():
        lines.append(f"{title:-^50}")
        for kind in ("mean", "median", "p99"):
            label = f"{'P99' if kind == 'p99' else kind.title()} {name.upper()} (ms):"
            lines.append(f"{label:<40} {results[f'{kind}_{name}_ms']:<10.2f}")
    return "\n".join([*lines, "=" * 50])
