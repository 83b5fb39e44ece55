"""How a model's matrices are stored and multiplied, from what users ask for and what the machine has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from octavo.errors import ConfigError
from octavo.kernels import ops
from octavo.layers.quantization.eight_bits import EightBits
from octavo.layers.quantization.int4 import Int4
from octavo.layers.quantization.scheme import Dense, Scheme

_GROUPS = (128, 64, 32)


@dataclass(frozen=True, slots=True)
class Storage:
    """`dense`: embeddings and heads, which are kept as they are. `matrix`: all others, by their inner features."""

    dense: Dense
    matrix: Callable[[int], Scheme]


def plain(dtype: torch.dtype) -> Storage:
    dense = Dense(dtype)
    return Storage(dense, lambda _: dense)


def choose(quantization: str, dtype: torch.dtype, arch: str | None, deterministic: bool) -> Storage:
    """arch: of the GPU, such as "sm_90"; None on a CPU. Raises ConfigError for what the machine does not have."""
    on_gpu = arch is not None
    dense = Dense(dtype, ops.invariant_linear) if deterministic and on_gpu else Dense(dtype)
    if quantization in ("auto", "none"):
        return Storage(dense, lambda _: dense)
    if deterministic and on_gpu and quantization != "int8":
        raise ConfigError(
            f"--deterministic and --quantization {quantization}: its sums depend on the batch; int8 adds exactly"
        )
    if quantization == "int8":
        return _where_it_divides(dense, lambda _: EightBits(torch.int8))
    if quantization == "int4":
        return _where_it_divides(dense, Int4)
    return _where_it_divides(dense, _fp8(arch))


def _where_it_divides(dense: Dense, scheme: Callable[[int], Scheme]) -> Storage:
    """The scheme for the largest group that divides a row; what none does stays dense."""

    def matrix(in_features: int) -> Scheme:
        group = next((size for size in _GROUPS if in_features % size == 0), None)
        return dense if group is None else scheme(group)

    return Storage(dense, matrix)


def _fp8(arch: str | None) -> Callable[[int], Scheme]:
    if arch is None:
        raise ConfigError("--quantization fp8 needs a GPU; on a CPU int8 is as small")
    if arch.startswith(("sm_7", "sm_80", "sm_86", "sm_87", "gfx90", "gfx1")):
        raise ConfigError(f"--quantization fp8: {arch} does not multiply 8-bit floats; int8 is as small")
    codes = torch.float8_e4m3fnuz if arch.startswith("gfx94") else torch.float8_e4m3fn
    return lambda _: EightBits(codes)
