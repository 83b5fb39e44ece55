"""Whole engines of others on the same shapes: vLLM, and transformers as the floor that needs nothing installed.

Each in the process of its own part, as both take a GPU for themselves. Rows are those of octavo's engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from .engines import Prompts, Work, decode_row, load_row, prefill_row, write_model
from .figures import Figure, Unit
from .roofline import FP8, Ceilings, Format, Shape, decode_seconds, offline_seconds, prefill_seconds

Generate = Callable[[list[list[int]], int], None]
"""Continues prompts by so many tokens each."""


def vllm(shape: Shape, form: Format, work: Work, ceilings: Ceilings) -> Iterator[Figure]:
    """Raises ImportError where it is not installed."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found,unused-ignore]

    eight_bits = {"quantization": "fp8", "kv_cache_dtype": "fp8"} if form == FP8 else {}
    with TemporaryDirectory() as name:
        write_model(Path(name), shape, work.longest())
        llm = LLM(
            model=name, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", max_num_seqs=256,
            max_num_batched_tokens=8192, max_model_len=work.longest(), enable_prefix_caching=False, **eight_bits,
        )  # fmt: skip

        def generate(prompts: list[list[int]], tokens: int) -> None:
            wanted = SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            llm.generate([{"prompt_token_ids": each} for each in prompts], wanted, use_tqdm=False)

        yield from _measure("vLLM", generate, shape, form, work, ceilings)


def transformers(shape: Shape, form: Format, work: Work, ceilings: Ceilings, device: torch.device) -> Iterator[Figure]:
    """`generate` with torch's attention, in 16 bits. Raises ImportError where it is not installed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings: dict[str, Any] = shape.config(work.longest())
    config = AutoConfig.for_model(**settings)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()

    def generate(prompts: list[list[int]], tokens: int) -> None:
        ids = torch.tensor(prompts, device=device)
        wanted = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), **wanted)
        if device.type != "cpu":
            torch.cuda.synchronize(device)

    yield from _measure("transformers", generate, shape, form, work, ceilings)


def _measure(
    name: str, generate: Generate, shape: Shape, form: Format, work: Work, ceilings: Ceilings
) -> Iterator[Figure]:
    prompts = Prompts(shape.vocabulary)

    def seconds(count: int, length: int, tokens: int) -> float:
        asked = [prompts.draw(length) for _ in range(count)]
        start = perf_counter()
        generate(asked, tokens)
        return perf_counter() - start

    def figure(row: str, value: float, unit: Unit, roof: float) -> Figure:
        return Figure(part=f"{shape.name} {form.name}", row=row, contestant=name, value=value, unit=unit, roof=roof)

    for context, batches in work.decoding:
        for batch in batches:
            seconds(batch, context, 2)
            alone, whole = (
                median(seconds(batch, context, count) for _ in range(work.repeats)) for count in (1, work.steps + 1)
            )
            step = max(whole - alone, 1e-9) / work.steps
            roof = decode_seconds(shape, form, batch, context + work.steps / 2, ceilings)
            yield figure(decode_row(batch, context), step * 1e3, "ms", roof * 1e3)
    for tokens in work.prefills:
        taken = median(seconds(1, tokens, 1) for _ in range(work.repeats))
        yield figure(prefill_row(tokens), taken * 1e3, "ms", prefill_seconds(shape, form, tokens, ceilings) * 1e3)
    for load in work.loads:
        taken = seconds(load.requests, load.prompt, load.output)
        roof = offline_seconds(shape, form, load, min(256, load.requests), ceilings)
        amount = load.requests * load.output
        yield figure(load_row(load), amount / taken, "tok/s", amount / roof)
