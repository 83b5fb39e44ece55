"""What following a grammar costs in a step: 8 sequences, each with a JSON schema of its own, and the same without any.

    make bench-grammars                            the embedded SmolLM2-135M-Instruct
    make bench-grammars ARGS="gemma-3-270m"        a name, folder or GGUF file

Steps in which all sequences draw a token are compared by their medians; then the share of the masked ones that goes
into making masks, applying them, and following what was drawn; and what it takes to compile the schemas.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

from octavo import SamplingParams
from octavo.config import EngineConfig
from octavo.engine.grammar import grammar_text
from octavo.engine.guidance import Grammars, Guides
from octavo.engine.llm_engine import LLMEngine
from octavo.execution import sampler
from octavo.request import StructuredOutputs

PROMPT = "Here are our customers, as JSON:\n"
TOKENS = 120
PARTS = {
    "making masks": (Guides, "mask"),
    "applying them": (sampler, "_forbid"),
    "following draws": (Guides, "advance"),
}


def schema(number: int) -> dict[str, Any]:
    """A list of records that goes on until the output is cut."""
    record = {
        "id": {"type": "integer", "minimum": number},
        "name": {"type": "string", "minLength": 1, "maxLength": 40},
        "mail": {"type": "string", "format": "email"},
        "since": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"enum": ["new", "gold", "late", f"tag-{number}"]}, "maxItems": 4},
        "notes": {"type": "string", "maxLength": 200},
    }
    item = {"type": "object", "properties": record, "required": list(record), "additionalProperties": False}
    return {"type": "array", "items": item, "minItems": 20}


@contextmanager
def clocks(seconds: dict[str, float]) -> Iterator[None]:
    """Around every part, each adding to its sum."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            began = perf_counter()
            try:
                return function(*arguments)
            finally:
                seconds[name] += perf_counter() - began

        return run

    patches = [patch.object(owner, name, timed(part, getattr(owner, name))) for part, (owner, name) in PARTS.items()]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def steps(engine: LLMEngine, sequences: int, guided: bool) -> tuple[list[float], list[dict[str, float]]]:
    """Seconds of each step in which every sequence draws, and of its parts."""
    for number in range(sequences):
        wishes = StructuredOutputs(json=schema(number)) if guided else None
        params = SamplingParams(max_tokens=TOKENS, seed=number, ignore_eos=True, structured_outputs=wishes)
        engine.add_request(str(number), PROMPT, params, output_kind="final")
    whole, parts = [], []
    while engine.get_num_unfinished_requests() == sequences:
        seconds: dict[str, float] = defaultdict(float)
        with clocks(seconds):
            began = perf_counter()
            engine.step()
            whole.append(perf_counter() - began)
        parts.append(seconds)
    engine.abort_request([str(number) for number in range(sequences)])
    return whole[2:], parts[2:]  # not the prompts' own, nor the first masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    engine = LLMEngine(EngineConfig.of(model=options.model, max_model_len=512))
    free: list[float] = []
    masked: list[float] = []
    parts: list[dict[str, float]] = []
    for _ in range(options.rounds):  # taking turns: both meet the same noise
        free += steps(engine, options.sequences, guided=False)[0]
        guided, spent = steps(engine, options.sequences, guided=True)
        masked += guided
        parts += spent
    whole = median(masked)
    print(f"{options.sequences} sequences, {len(masked)} steps: {1e3 * median(free):.2f} ms without grammars, ", end="")
    print(f"{1e3 * whole:.2f} ms with ({100 * (whole / median(free) - 1):+.1f} %)")
    for name in PARTS:
        times = [each[name] for each in parts]
        middle, worst = median(times), max(times)
        print(f"  {name:16} {1e3 * middle:6.3f} ms  {100 * middle / whole:4.1f} %   at worst {1e3 * worst:.2f} ms")
    shares = [sum(each.values()) / step for each, step in zip(parts, masked, strict=True)]
    total = sum(sum(each.values()) for each in parts) / sum(masked)
    print(f"  of all steps' time {100 * total:.1f} %, of the median step {100 * median(shares):.1f} %")
    compile_alone(engine)


def compile_alone(engine: LLMEngine) -> None:
    grammars = Grammars(lambda: engine.tokenizer, engine.tokenizer.vocab_size)
    seconds = []
    for number in range(20):
        text = grammar_text(StructuredOutputs(json=schema(number)))
        began = perf_counter()
        grammars.compile(text)
        seconds.append(perf_counter() - began)
    first, others = 1e3 * seconds[0], 1e3 * median(seconds[1:])
    print(f"  compiling: {first:.0f} ms the first (the vocabulary too), {others:.1f} ms others")


if __name__ == "__main__":
    main()
