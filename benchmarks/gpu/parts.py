"""What is measured, in the order of importance, with the time that each part gets: one list for a GPU, one for a CPU.

On a CPU every line runs at sizes of nothing, kernels interpreted, so that none of them waits for its first GPU to fail;
figures from there mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from . import ceilings, checks, engines, kernels, peers
from .engines import Engine, Work, decode_row, load_row, prefill_row
from .figures import EAGER, OCTAVO, Figure, Outcome, Target
from .kernels import FLASH_ATTENTION, FLASH_INFER, Bench
from .roofline import BF16, FP8, INT4, LLAMA_1B, LLAMA_8B, QWEN_06B, QWEN_8B, Ceilings, Format, Load, Shape

Found = Iterator[Figure | Outcome]


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float  # it may take
    run: Callable[[Bench], Found]


BATCHES = (1, 8, 32, 128, 256)
ATTENDED = ((1, 1024), (8, 1024), (32, 1024), (128, 1024), (1, 4096), (8, 4096), (32, 4096), (128, 4096))
LOADS = (Load(1024, 128, 128), Load(256, 1000, 1000), Load(256, 2048, 128))
MIXED = LOADS[1]
ARGUMENTS: dict[Format, dict[str, Any]] = {
    BF16: {},
    FP8: {"quantization": "fp8", "kv_cache_dtype": "fp8"},
    INT4: {"quantization": "int4"},
}


def check(bench: Bench, sizes: checks.Sizes, dtypes: Sequence[torch.dtype]) -> Found:
    """A row for each kernel: its largest error as a share of what it may be."""
    for names, function in checks.CHECKS.items():
        worst: dict[str, checks.Verdict] = {}
        for dtype in dtypes:
            trial = checks.Trial(bench.kernels, bench.watch.device, dtype, sizes)
            try:
                for verdict in function(trial):
                    worst[verdict.kernel] = max(worst.get(verdict.kernel, verdict), verdict, key=lambda v: v.excess)
            except (RuntimeError, TypeError, ValueError, AssertionError, ImportError) as error:
                why = f"{type(error).__name__}: {error}"
                yield Outcome(part=f"check of {', '.join(names)}, {dtype}", state="failed", why=why)
        for name, verdict in worst.items():
            yield Figure(
                part="errors against float64", row=f"{name} ({verdict.case})", contestant=OCTAVO, value=verdict.excess,
                unit="of what is allowed",
            )  # fmt: skip
            if not verdict.right:
                yield Outcome(part=f"check of {name}", state="failed", why=f"wrong: {verdict.case}")


def engine(shape: Shape, form: Format, work: Work, graphs: bool = True, **arguments: Any) -> Callable[[Bench], Found]:
    asked = ARGUMENTS[form] | ({} if graphs else {"enforce_eager": True}) | arguments
    arranged = Engine(shape=shape, form=form, contestant=OCTAVO if graphs else EAGER, arguments=asked)
    return lambda bench: engines.measure(arranged, work, bench.ceilings)


def on_gpu() -> list[Part]:
    decoding = ((1024, BATCHES),)
    both = ((1024, BATCHES), (4096, (1, 8, 32, 128)))
    more = (torch.bfloat16, torch.float16, torch.float32)
    parts = [
        Part("ceilings", 60, lambda bench: ceilings.measure(bench.watch, 8192, 1 << 30)),
        Part("checks", 150, partial(check, sizes=checks.Sizes(), dtypes=(torch.bfloat16,))),
        Part("8B bf16", 180, engine(LLAMA_8B, BF16, Work(decoding=decoding, prefills=(2048, 512, 8192)))),
        Part("1B bf16", 120, engine(LLAMA_1B, BF16, Work(decoding=decoding, prefills=(2048,)))),
        Part("attention", 120, partial(_attention, shapes=(LLAMA_8B,))),
        Part("8B int4", 120, engine(LLAMA_8B, INT4, Work(decoding=((1024, (1, 8, 32)),)))),
        Part("8B fp8", 180, engine(LLAMA_8B, FP8, Work(loads=(MIXED,), decoding=decoding, prefills=(2048,)))),
        Part("8B bf16, no graphs", 90, engine(LLAMA_8B, BF16, Work(decoding=((1024, (1, 32)),)), graphs=False)),
        Part("1B bf16, no graphs", 60, engine(LLAMA_1B, BF16, Work(decoding=((1024, (1, 32)),)), graphs=False)),
        Part("products", 90, partial(_products, shape=LLAMA_8B, rows=(1, 16, 64, 256, 2048))),
        Part("small kernels", 60, partial(_small, shape=LLAMA_8B, rows=(1, 256, 8192), draws=(1, 32, 256))),
        Part("vLLM 8B bf16", 200, _vllm(LLAMA_8B, BF16, Work(decoding=((1024, (1, 256)),), prefills=(2048,)))),
        Part("8B bf16 loads", 180, engine(LLAMA_8B, BF16, Work(loads=LOADS))),
        Part("vLLM 8B fp8 load", 200, _vllm(LLAMA_8B, FP8, Work(loads=(MIXED,)))),
        Part("transformers 1B", 90, _transformers(LLAMA_1B, Work(decoding=((1024, (1, 32)),), prefills=(2048,)))),
        Part("attention of 1B", 120, partial(_attention, shapes=(LLAMA_1B,))),
        Part("more checks", 600, partial(check, sizes=checks.MORE, dtypes=more)),
    ]
    for shape in (LLAMA_8B, QWEN_8B, LLAMA_1B, QWEN_06B):
        for form in (BF16, FP8, INT4):
            work = Work(decoding=both, prefills=(512, 2048, 8192), loads=LOADS)
            parts.append(Part(f"all of {shape.name}, {form.name}", 240, engine(shape, form, work)))
    return parts


def on_cpu() -> list[Part]:
    tiny = replace(
        QWEN_06B, name="tiny", layers=2, hidden=128, inner=128, heads=2, kv_heads=1, head_size=64, vocabulary=96
    )
    work = Work(decoding=((70, (1, 2, 999)),), prefills=(16,), loads=(Load(3, 8, 4),), steps=2, repeats=1)
    small: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
    sizes = checks.TINY
    return [
        Part("ceilings", 60, lambda bench: ceilings.measure(bench.watch, 32, 1 << 12)),
        Part("checks", 600, partial(check, sizes=sizes, dtypes=(torch.float16,))),
        Part("engine", 60, engine(tiny, BF16, work, **small)),
        Part("engine, no graphs", 60, engine(tiny, BF16, work, graphs=False, **small)),
        Part("engine, int4", 60, engine(tiny, INT4, work, **small)),
        Part("engine, fp8", 60, engine(tiny, FP8, work, **small)),
        Part("attention", 300, partial(_attention, shapes=(tiny,), decoding=((2, 20),), prefills=(5,))),
        Part("products", 60, partial(_products, shape=tiny, rows=(1, 3))),
        Part("small kernels", 60, partial(_small, shape=tiny, rows=(1, 3), draws=(1, 2))),
        Part("vLLM", 60, _vllm(tiny, FP8, work)),
        Part("transformers", 60, _transformers(tiny, replace(work, decoding=((8, (1, 2)),)))),
    ]


def _attention(
    bench: Bench,
    shapes: Sequence[Shape],
    decoding: Sequence[tuple[int, int]] = ATTENDED,
    prefills: Sequence[int] = (512, 2048, 8192),
) -> Found:
    for form in (BF16, FP8) if bench.watch.device.type != "cpu" else (BF16,):
        for shape in shapes:
            yield from kernels.attention(bench, shape, decoding, prefills if form == BF16 else (), form)


def _products(bench: Bench, shape: Shape, rows: Sequence[int]) -> Found:
    for form in (BF16, INT4, FP8):
        yield from kernels.products(bench, shape, rows, form)


def _small(bench: Bench, shape: Shape, rows: Sequence[int], draws: Sequence[int]) -> Found:
    yield from kernels.small_kernels(bench, shape, rows)
    yield from kernels.draws(bench, shape.vocabulary, draws)


def _vllm(shape: Shape, form: Format, work: Work) -> Callable[[Bench], Found]:
    return lambda bench: peers.vllm(shape, form, work, bench.ceilings)


def _transformers(shape: Shape, work: Work) -> Callable[[Bench], Found]:
    return lambda bench: peers.transformers(shape, BF16, work, bench.ceilings, bench.watch.device)


def ceilings_of(figures: Sequence[Figure]) -> Ceilings | None:
    """As the part "ceilings" found them; None if it did not come through."""
    found = {each.row.split()[0]: each.value for each in figures if each.part == ceilings.PART}
    if not {"copy", "bf16"} <= found.keys():
        return None
    return Ceilings(
        found["copy"] * 1e9, found["bf16"] * 1e12, found.get("fp8", 0.0) * 1e12, found.get("int8", 0.0) * 1e12
    )


_EIGHT, _ONE = f"{LLAMA_8B.name} {BF16.name}", f"{LLAMA_1B.name} {BF16.name}"
_ATTENTION = f"attention of {LLAMA_8B.name}, {BF16.name}"
_LIBRARIES = (FLASH_ATTENTION, FLASH_INFER)
TARGETS = (
    Target(title="8B bf16, one sequence after 1K, a token", part=_EIGHT, rows=(decode_row(1, 1024),), share=0.80,
           best_public="~70 %; H100 at 80 %: 6.3 ms"),
    Target(title="1B bf16, one sequence after 1K, a token", part=_ONE, rows=(decode_row(1, 1024),), share=0.60,
           best_public="52 % engines, 78 % a megakernel; H100 at 60 %: 1.4 ms"),
    Target(title="8B bf16, 256 sequences after 1K, a step", part=_EIGHT, rows=(decode_row(256, 1024),), share=0.80,
           best_public="~75–80 %; H100 at 80 %: 12.4k tok/s"),
    Target(title="8B bf16, a prompt of 2,048", part=_EIGHT, rows=(prefill_row(2048),), share=0.65,
           best_public="~60–75 %"),
    Target(title="8B int4, one sequence after 1K, a token", part=f"{LLAMA_8B.name} {INT4.name}",
           rows=(decode_row(1, 1024),), share=0.60, best_public="~50 %"),
    Target(title="8B fp8 + fp8 KV, offline 1000/1000", part=f"{LLAMA_8B.name} {FP8.name}", rows=(load_row(MIXED),),
           share=0.80, best_public="80–82 %"),
    Target(title="our attention, decoding", part=_ATTENTION,
           rows=tuple(decode_row(*each) for each in ATTENDED), share=0.95,
           peers=_LIBRARIES, best_public="100 %"),
    Target(title="our attention, a prompt of 8,192", part=_ATTENTION, rows=(prefill_row(8192),), share=0.70,
           peers=_LIBRARIES),
)  # fmt: skip
