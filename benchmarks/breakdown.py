"""Where a step's time goes: each kind of operation, the logits, sampling, and the Python around them.

    make bench-step                                the embedded SmolLM2-135M-Instruct
    make bench-step ARGS="gemma-3-270m"            a name, folder or GGUF file
    make bench-step ARGS="--config 1.5b"           random 4-bit weights in the shapes of a Llama of that size

A prefill of 1,000 tokens, then steps in which 1, 8 and 32 sequences get a token each. The recorded program reports its
operations itself; clocks around them cost a little, so every case first runs without any, and that is its speed.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
import numpy.typing as npt

from octavo import SamplingParams
from octavo.checkpoint import resolve
from octavo.config import EngineConfig
from octavo.engine.llm_engine import LLMEngine
from octavo.execution.executor import InProcessExecutor
from octavo.execution.graphs import Recorded
from octavo.kernels._native import Program

REST, STEP = "Python around them", "step"
Seconds = defaultdict[str, float]


@dataclass(frozen=True)
class Case:
    """`new_tokens` 1: the step of the prompts is measured; more: the steps after it."""

    name: str
    sequences: int
    prompt_tokens: int
    new_tokens: int
    repeats: int = 1

    def tokens(self) -> int:
        """Of a step."""
        return self.sequences * (self.prompt_tokens if self.new_tokens == 1 else 1)


CASES = [
    Case("prefill of 1,000", 1, 1000, 1, repeats=5),
    *(Case(f"{count} decoding", count, 32, 65) for count in (1, 8, 32)),
]


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int


SHAPES = {"0.5b": Shape(1024, 24, 16, 8, 2816), "1.5b": Shape(2048, 24, 32, 8, 5632)}
VOCABULARY = 32_000


def blocks(rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Q4_0: a scale and 32 codes of 4 bits."""
    raw = np.random.default_rng(0).integers(0, 256, (rows, columns // 32, 18), dtype=np.uint8)
    raw[:, :, :2] = np.array([0.2 / columns**0.5], np.float16).view(np.uint8)  # outputs about as large as inputs
    return raw.reshape(rows, -1)


def write_random(path: Path, shape: Shape) -> None:
    """A Llama whose layers share their random weights, and a tokenizer that knows a name for every token."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{number}>" for number in range(VOCABULARY)])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)

    hidden, inner, kv = shape.hidden, shape.inner, shape.hidden // shape.heads * shape.kv_heads
    ones = np.ones(hidden, np.float32)
    sizes = {
        "attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, hidden),
        "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
    }  # fmt: skip
    layer = {name: blocks(*size) for name, size in sizes.items()} | {"attn_norm": ones, "ffn_norm": ones}
    tensors = {f"blk.{number}.{name}": values for number in range(shape.layers) for name, values in layer.items()}
    for name, values in {"token_embd": blocks(VOCABULARY, hidden), "output_norm": ones, **tensors}.items():
        kind = gguf.GGMLQuantizationType.Q4_0 if values.dtype == np.uint8 else None
        writer.add_tensor(f"{name}.weight", values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TimedProgram:
    """Stands in for a recorded program."""

    def __init__(self, program: Program, seconds: Seconds) -> None:
        self.program, self.seconds = program, seconds

    def run(self, *step: int) -> None:
        for kind, taken in self.program.timed_run(*step).items():
            self.seconds[kind] += taken


def timed(name: str, function: Callable[..., Any], seconds: Seconds) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        start = perf_counter()
        result = function(*arguments)
        seconds[name] += perf_counter() - start
        return result

    return call


@contextmanager
def clocks(executor: InProcessExecutor) -> Iterator[Seconds]:
    """Adds up, while it is open, what each kind of work takes."""
    runner = executor._worker._runner
    assert runner is not None
    graph = runner._graph
    if not isinstance(graph, Recorded):
        raise SystemExit("the model's steps are not recorded (octavo.execution.graphs): there is nothing to take apart")
    seconds: Seconds = defaultdict(float)
    places: list[tuple[str, Any, str]] = [
        ("embedding", runner._model.embedding, "forward"),
        ("logits", runner._model, "logits"),
        ("sampling", runner._sampler, "sample"),
    ]
    with ExitStack() as stack:
        program = TimedProgram(graph._recorder.program, seconds)
        stack.enter_context(patch.object(graph._recorder, "program", program))
        for name, owner, method in places:
            stack.enter_context(patch.object(owner, method, timed(name, getattr(owner, method), seconds)))
        yield seconds


def measure(engine: LLMEngine, vocabulary: int, case: Case, seconds: Seconds) -> Seconds:
    """Seconds of a step: all of it, and the parts that `seconds` is filled with meanwhile.

    The mean of the quicker half of the steps: whatever disturbed the others was not octavo.
    """
    steps: list[Seconds] = []
    params = SamplingParams(temperature=0.0, max_tokens=case.new_tokens, ignore_eos=True)
    for _ in range(case.repeats):
        for number in range(case.sequences):
            engine.add_request(str(number), random.choices(range(vocabulary), k=case.prompt_tokens), params)
        if case.new_tokens > 1:
            engine.step()
        while engine.has_unfinished_requests():
            seconds.clear()
            start = perf_counter()
            engine.step()
            steps.append(defaultdict(float, seconds) | {STEP: perf_counter() - start})
    assert len(steps) == case.repeats * max(case.new_tokens - 1, 1), "all prompts fit into one step"
    quick = sorted(steps, key=lambda step: step[STEP])[: -(-len(steps) // 2)]
    return defaultdict(float, {kind: sum(step[kind] for step in quick) / len(quick) for kind in {STEP, *seconds}})


def table(plain: list[Seconds], parts: list[Seconds]) -> str:
    kinds = sorted({kind for each in parts for kind in each} - {STEP}, key=lambda kind: -sum(p[kind] for p in parts))
    for each in parts:
        each[REST] = each[STEP] - sum(each[kind] for kind in kinds)
    lines = [("", [case.name for case in CASES])]
    lines += [
        (kind, [f"{each[kind] * 1e3:.2f} ms {each[kind] / each[STEP]:4.0%}" for each in parts])
        for kind in [*kinds, REST]
    ]
    lines.append(("step with clocks", [f"{each[STEP] * 1e3:.2f} ms     " for each in parts]))
    lines.append(("step without", [f"{each[STEP] * 1e3:.2f} ms     " for each in plain]))
    rates = [case.tokens() / each[STEP] for case, each in zip(CASES, plain, strict=True)]
    lines.append(("tok/s", [f"{rate:,.0f}        " for rate in rates]))
    return "\n".join(f"{name:<20}" + "".join(f"{cell:>20}" for cell in cells) for name, cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("model", nargs="?", help="as for octavo serve; none: the embedded SmolLM2-135M-Instruct")
    source.add_argument("--config", choices=SHAPES, help="random weights instead")
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")
    arguments = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if arguments.config:
            model = str(Path(folder) / f"{arguments.config}.gguf")
            write_random(Path(model), SHAPES[arguments.config])
        config = EngineConfig.of(
            model=model, device="cpu", max_model_len=2048, enable_prefix_caching=False, num_threads=arguments.threads
        )
        checkpoint = resolve(config.model)
        executor = InProcessExecutor(config, checkpoint)
        engine = LLMEngine(config, executor)
        width = executor.capacity.vocab_size
        measure(engine, width, CASES[1], defaultdict(float))  # warm up
        plain, parts = [], []
        for case in CASES:
            plain.append(measure(engine, width, case, defaultdict(float)))
            with clocks(executor) as seconds:
                parts.append(measure(engine, width, case, seconds))
        engine.close()
    print(checkpoint.name)
    print(table(plain, parts))


if __name__ == "__main__":
    main()
