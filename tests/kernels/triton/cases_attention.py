"""Attention as models launch it: decoding, prompts, both in one step; whole and 8-bit caches; windows, caps, sinks."""

from __future__ import annotations

from dataclasses import replace

import torch
from compiling import USUAL, Case, Expect, New

from octavo.kernels.triton import kernels

BLOCK = 16
MODELS = {  # query heads, key/value heads, head size
    "Llama-3.1-8B": (32, 8, 128),
    "Llama-3.2-1B": (32, 8, 64),
    "Qwen3-0.6B": (16, 8, 128),
    "Gemma-2-9B": (16, 8, 256),
}
DECODING = ((1, 1), (8, 8), (13, 13), (256, 256))  # rows, tokens
PROMPTS = ((1, 2048), (1, 33))
MIXED = ((3, 2048), (40, 2048))


def attend(
    new: New,
    model: str,
    steps: tuple[tuple[int, int], ...],
    dtype: torch.dtype = torch.bfloat16,
    kind: torch.dtype | None = None,
    window: int = 0,
    softcap: float = 0.0,
    causal: bool = True,
    sinks: bool = False,
    split_tokens: int = 0,
    block_size: int = BLOCK,
) -> None:
    heads, kv_heads, head_size = MODELS[model]
    for rows, tokens in steps:
        q = new(tokens, heads + 2 * kv_heads, head_size, dtype=dtype)[:, :heads]
        k, v = (new(1000, kv_heads, block_size, head_size, dtype=kind or dtype) for _ in range(2))
        lengths = [new(length, dtype=torch.int32) for length in (rows + 1, rows)]
        table = new(rows, 300 + rows, dtype=torch.int32)
        kernels.paged_attention(
            q, k, v, *lengths, table, head_size**-0.5, window, softcap, causal,
            new(heads, dtype=torch.float32) if sinks else None, 0.5, 0.5, split_tokens,
        )  # fmt: skip


def case(
    name: str, model: str, steps: tuple[tuple[int, int], ...], expect: Expect, binaries: int, **options: object
) -> Case:
    targets = options.pop("targets", USUAL)
    quick = options.pop("quick", ())
    return Case(
        f"attention {name}",
        lambda new: attend(new, model, steps, **options),  # type: ignore[arg-type]
        {"_attend": expect, "_merge": Expect(registers=128)},
        binaries=binaries,
        targets=targets,  # type: ignore[arg-type]
        quick=quick,  # type: ignore[arg-type]
    )


FEW = Expect(pipelined=True, products="mma", registers=168, narrow_loads=0)
MANY = Expect(pipelined=True, products="wgmma", narrow_loads=0)
BOTH = Expect(pipelined=True, products="mma", narrow_loads=0)
IN_FLOAT32 = Expect(pipelined=True, spills=16)

CASES = [
    *(case(f"decode {model}", model, DECODING, FEW, 9) for model in MODELS),
    *(case(f"prompts {model}", model, PROMPTS, MANY, 6) for model in MODELS),
    case("mixed Llama-3.1-8B", "Llama-3.1-8B", MIXED, BOTH, 6, quick=("sm_90", "gfx942")),
    *(
        case(f"fixed splits {model}", model, (*DECODING, *PROMPTS, *MIXED), MANY, 6, split_tokens=512)
        for model in ("Llama-3.1-8B", "Llama-3.2-1B")
    ),
    case("window and cap", "Gemma-2-9B", (*PROMPTS, *DECODING), BOTH, 9, window=4096, softcap=50.0),
    case("window and sinks", "Llama-3.2-1B", (*PROMPTS, *DECODING), BOTH, 9, window=128, sinks=True),
    case("texts of an encoder", "Llama-3.2-1B", (*PROMPTS, *MIXED), BOTH, 9, causal=False),
    case("large blocks", "Llama-3.1-8B", (*PROMPTS, *DECODING), BOTH, 9, block_size=64),
    case("float32", "Llama-3.2-1B", (*PROMPTS, *DECODING), IN_FLOAT32, 9, dtype=torch.float32),
    *(
        case(
            f"cache of {kind}",
            "Llama-3.1-8B",
            (*PROMPTS, *DECODING),
            replace(BOTH, spills=4),
            9,
            kind=getattr(torch, kind),
            targets=targets,
        )
        for kind, targets in (
            ("float8_e5m2", ("sm_80", "sm_90", "sm_100")),
            ("float8_e4m3fn", ("sm_90", "sm_100")),  # Ampere has no such numbers
            ("float8_e4m3fnuz", ("gfx942",)),
            ("float8_e5m2fnuz", ("gfx942",)),
        )
    ),
]
