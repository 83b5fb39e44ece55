"""Whole engine steps, as a user gets them: scheduler, runner, graphs, sampler and texts, with random weights.

Decoding is measured on a ladder: sequences join until there are as many as asked for, then some steps are timed; each
has its own blocks, as nothing is found in a prefix cache. Prefill is a prompt's way to its first token. A load is
answered by `LLM`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from tokenizers import Tokenizer, decoders, models

from octavo import LLM, SamplingParams

from .figures import Figure
from .roofline import Ceilings, Format, Load, Shape, decode_seconds, offline_seconds, prefill_seconds

_JOINING = 64  # tokens that a context may grow by while others join
_SETTLING = 5  # steps before any is timed: graphs are captured meanwhile


@dataclass(frozen=True, kw_only=True)
class Work:
    """What to measure, in this order."""

    decoding: tuple[tuple[int, tuple[int, ...]], ...] = ()  # a context, and numbers of sequences
    prefills: tuple[int, ...] = ()
    loads: tuple[Load, ...] = ()
    steps: int = 30
    repeats: int = 5

    def longest(self) -> int:
        """Tokens of a sequence."""
        steps = sum(self.steps + _SETTLING + 200 for _, batches in self.decoding for _ in batches)
        contexts = [context + steps for context, _ in self.decoding]
        return max([*contexts, *self.prefills, *(load.prompt + load.output for load in self.loads)]) + 1


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A model, and how it runs."""

    shape: Shape
    form: Format
    contestant: str
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of LLM
    sequences: int = 256  # at once, at most

    @property
    def part(self) -> str:
        return f"{self.shape.name} {self.form.name}"


def decode_row(sequences: int, context: int) -> str:
    return f"decode {sequences} × {context:,}"


def prefill_row(tokens: int) -> str:
    return f"prefill {tokens:,}"


def load_row(load: Load) -> str:
    return f"offline {load}"


def write_model(folder: Path, shape: Shape, longest: int) -> None:
    """A config.json, and a tokenizer that knows a name for every token."""
    (folder / "config.json").write_text(json.dumps(shape.config(longest)))
    tokenizer = Tokenizer(models.WordLevel({f"t{number}": number for number in range(shape.vocabulary)}, "t0"))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


class Prompts:
    """Random tokens; no two prompts begin alike."""

    def __init__(self, vocabulary: int) -> None:
        self._random = random.Random(0)
        self._vocabulary = vocabulary

    def draw(self, length: int) -> list[int]:
        return self._random.choices(range(self._vocabulary), k=length)


def params(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True)


def measure(engine: Engine, work: Work, ceilings: Ceilings) -> Iterator[Figure]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        longest = work.longest()
        write_model(folder, engine.shape, longest)
        arguments = {
            "load_format": "dummy", "dtype": "bfloat16", "max_model_len": longest, "max_num_batched_tokens": 8192,
            "max_num_seqs": engine.sequences, "enable_prefix_caching": False,
        } | dict(engine.arguments)  # fmt: skip
        with closing(LLM(str(folder), **arguments)) as llm:
            measurement = _Measurement(llm, engine, work, ceilings)
            for context, batches in work.decoding:
                yield from measurement.ladder(context, batches)
            for tokens in work.prefills:
                yield measurement.prefill(tokens)
            for load in work.loads:
                yield measurement.load(load)


class _Measurement:
    def __init__(self, llm: LLM, engine: Engine, work: Work, ceilings: Ceilings) -> None:
        self._llm, self._engine, self._work, self._ceilings = llm, engine, work, ceilings
        self._prompts = Prompts(engine.shape.vocabulary)
        self._names = iter(range(2**31))
        capacity = llm.llm_engine._core.executor.capacity
        self._room = capacity.num_blocks * capacity.block_size

    def _figure(self, row: str, value: float, unit: Any, roof: float) -> Figure:
        return Figure(
            part=self._engine.part, row=row, contestant=self._engine.contestant, value=value, unit=unit, roof=roof
        )

    def ladder(self, context: int, batches: Sequence[int]) -> Iterator[Figure]:
        core, lengths = self._llm.llm_engine, dict[str, int]()
        prompt = max(context - _JOINING, 1)
        most = self._work.longest() - prompt - 1
        for batch in sorted(batches):
            if batch > self._engine.sequences or batch * (context + 2 * _JOINING) > self._room:
                break
            waiting = set()
            while len(lengths) < batch:
                name = f"ladder {next(self._names)}"
                core.add_request(name, self._prompts.draw(prompt), params(most), output_kind="delta")
                lengths[name] = prompt
                waiting.add(name)
            while waiting:
                waiting -= self._step(lengths)
            for _ in range(_SETTLING):
                self._step(lengths)
            found = []
            for _ in range(self._work.steps):
                start = perf_counter()
                self._step(lengths)
                found.append(perf_counter() - start)
            mean = sum(lengths.values()) / batch - self._work.steps / 2
            roof = decode_seconds(self._engine.shape, self._engine.form, batch, mean, self._ceilings)
            yield self._figure(decode_row(batch, context), median(found) * 1e3, "ms", roof * 1e3)
        core.abort_request(list(lengths))

    def _step(self, lengths: dict[str, int]) -> set[str]:
        """Who got something."""
        outputs = self._llm.llm_engine.step()
        for output in outputs:
            assert output.outputs[0].finish_reason is None, output.outputs[0].stop_reason
            lengths[output.request_id] += len(output.outputs[0].token_ids)
        return {output.request_id for output in outputs}

    def prefill(self, tokens: int) -> Figure:
        found = []
        for _ in range(self._work.repeats + 1):
            prompt = self._prompts.draw(tokens)
            start = perf_counter()
            self._llm.generate(prompt, params(1), use_tqdm=False)
            found.append(perf_counter() - start)
        roof = prefill_seconds(self._engine.shape, self._engine.form, tokens, self._ceilings)
        return self._figure(prefill_row(tokens), median(found[1:]) * 1e3, "ms", roof * 1e3)

    def load(self, load: Load) -> Figure:
        prompts = [self._prompts.draw(load.prompt) for _ in range(load.requests)]
        start = perf_counter()
        outputs = self._llm.generate(prompts, params(load.output), use_tqdm=False)
        seconds = perf_counter() - start
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        at_once = min(self._engine.sequences, load.requests, self._room // (load.prompt + load.output))
        roof = offline_seconds(self._engine.shape, self._engine.form, load, max(at_once, 1), self._ceilings)
        return self._figure(load_row(load), tokens / seconds, "tok/s", load.requests * load.output / roof)
