"""Every operation of a model, with its signature and meaning; the only place that asks which device a tensor is on.

T tokens of a step, R rows (sequences) of a step, H query heads, G key/value heads, D head size, E width, K and N inner
and outer features of a matrix, B block size. All compute in float32 and round once, to the dtype of their input. A
row's result depends on nothing but the row, except where `linear` hands large batches to torch's matrix product.
Callers vouch for shapes and dtypes: these functions assert little and check no values.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels import cpu, reference
from octavo.kernels.draws import Adjustments, DeviceDraws, Draws, Report
from octavo.kernels.layout import Layout, Order
from octavo.kernels.packed import PackedMatrix


class Kernels(Protocol):
    """What an implementation provides: `reference` in plain torch for any device, `cpu` compiled, `triton` for GPUs."""

    def linear(self, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, full_precision: bool) -> Tensor: ...
    def invariant_linear(
        self, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None, full_precision: bool
    ) -> Tensor: ...
    def group_linear(
        self,
        x_TK: Tensor,
        codes: Tensor,
        scales: Tensor,
        minimums: Tensor | None,
        bias_N: Tensor | None,
        full_precision: bool,
    ) -> Tensor: ...
    def scaled_linear(
        self, x_TK: Tensor, codes_NK: Tensor, scales_N: Tensor, bias_N: Tensor | None, full_precision: bool
    ) -> Tensor: ...
    def quantized_linear(
        self, x_TK: Tensor, matrix: PackedMatrix, bias_N: Tensor | None, full_precision: bool
    ) -> Tensor: ...
    def quantized_embedding(self, ids_T: Tensor, matrix: PackedMatrix, dtype: torch.dtype) -> Tensor: ...
    def rms_norm(self, x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor: ...
    def add_rms_norm(self, x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor: ...
    def layer_norm(self, x_TE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor: ...
    def add_layer_norm(
        self, x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float
    ) -> Tensor: ...
    def gelu(self, x_TE: Tensor) -> Tensor: ...
    def gelu_tanh(self, x_TE: Tensor) -> Tensor: ...
    def relu(self, x_TE: Tensor) -> Tensor: ...
    def silu_mul(self, gate_up_TE: Tensor) -> Tensor: ...
    def gelu_tanh_mul(self, gate_up_TE: Tensor) -> Tensor: ...
    def rotary_and_write(
        self,
        q_THD: Tensor,
        k_TGD: Tensor,
        v_TGD: Tensor,
        positions_T: Tensor,
        table_PD: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slots_T: Tensor,
        q_weight_D: Tensor | None,
        k_weight_D: Tensor | None,
        eps: float,
        k_scale: float,
        v_scale: float,
    ) -> None: ...
    def write_kv(
        self,
        k_TGD: Tensor,
        v_TGD: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slots_T: Tensor,
        k_scale: float,
        v_scale: float,
    ) -> None: ...
    def copy_blocks(self, from_PBX: Tensor, to_PBX: Tensor, sources_N: Tensor, destinations_N: Tensor) -> None: ...
    def paged_attention(
        self,
        q_THD: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        query_start: Tensor,
        seq_lens_R: Tensor,
        block_tables: Tensor,
        scale: float,
        window: int,
        softcap: float,
        causal: bool,
        sinks_H: Tensor | None,
        k_scale: float,
        v_scale: float,
        split_tokens: int,
    ) -> Tensor: ...
    def sample(self, logits_RV: Tensor, draws: Draws) -> tuple[list[int], list[float]]: ...
    def draw(
        self,
        raw_RV: Tensor,
        draws: DeviceDraws,
        tokens_D: Tensor,
        peaks_R: Tensor,
        adjustments: Adjustments | None,
        adjusted_RV: Tensor | None,
        random: bool,
        restricted: bool,
    ) -> None: ...
    def count_tokens(
        self, said_MV: Tensor, last_M: Tensor, rows_E: Tensor, tokens_E: Tensor, times_E: Tensor
    ) -> None: ...
    def report_logprobs(self, raw_RV: Tensor, tokens_D: Tensor, wanted: Report) -> None: ...
    def lay_out(self, order: Order, last_token_S: Tensor, tables_SB: Tensor, block_size: int, out: Layout) -> None: ...


def kernels_for(x: Tensor) -> Kernels:
    """The one `if`. Tensors that record a program bring the kernels that write it."""
    if type(x) is not Tensor:
        return x.kernels  # type: ignore[attr-defined,no-any-return]
    if x.is_cuda:  # AMD's too
        return gpu_kernels()
    return cpu.compiled if x.is_cpu and cpu.available() else reference


@cache
def gpu_kernels() -> Kernels:
    """Triton's; plain torch where there is no triton, and a word about it."""
    try:
        from octavo.kernels.triton import kernels
    except ImportError as error:
        logging.getLogger(__name__).warning(
            "no triton (%s): running on plain torch, several times slower; torch's builds for GPUs bring it along",
            error,
        )
        return reference
    return kernels


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, full_precision: bool = False) -> Tensor:
    """x W^T + b. With `full_precision` the result is float32, as sampling wants its logits."""
    return kernels_for(x_TK).linear(x_TK, weight_NK, bias_N, full_precision)


def invariant_linear(
    x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, full_precision: bool = False
) -> Tensor:
    """x W^T + b with the same bits for a row in any batch."""
    return kernels_for(x_TK).invariant_linear(x_TK, weight_NK, bias_N, full_precision)


def group_linear(
    x_TK: Tensor,
    codes: Tensor,
    scales: Tensor,
    minimums: Tensor | None = None,
    bias_N: Tensor | None = None,
    full_precision: bool = False,
) -> Tensor:
    """x W^T + b with W in 4 bits: scale · (code - 8), with minimums scale · code + minimum.

    codes: uint8 [N, K/2]. scales and minimums: [N, K/G] of any float, for groups of G = 32, 64 or 128 columns each;
    byte j of a group has its column j in the lower half and column j + G/2 in the upper.
    """
    return kernels_for(x_TK).group_linear(x_TK, codes, scales, minimums, bias_N, full_precision)


def scaled_linear(
    x_TK: Tensor, codes_NK: Tensor, scales_N: Tensor, bias_N: Tensor | None = None, full_precision: bool = False
) -> Tensor:
    """x W^T + b with W = scale · code (int8, or an 8-bit float), and every row of x brought to such codes, too.

    By int8 sums are exact: a row's result depends on nothing else.
    """
    return kernels_for(x_TK).scaled_linear(x_TK, codes_NK, scales_N, bias_N, full_precision)


def quantized_linear(
    x_TK: Tensor, matrix: PackedMatrix, bias_N: Tensor | None = None, full_precision: bool = False
) -> Tensor:
    """x W^T + b with W as it is packed and x rounded to 8 bits: x = scale · code, a scale for every 32 of a row.

    Sums in one order: equal bits for a row in any batch, on any number of threads and any instruction set (but for
    subnormal bfloat16 results, which some sets take for zero).
    """
    return kernels_for(x_TK).quantized_linear(x_TK, matrix, bias_N, full_precision)


def quantized_embedding(ids_T: Tensor, matrix: PackedMatrix, dtype: torch.dtype) -> Tensor:
    """Rows of a packed matrix (ids int64), exact but for the rounding to `dtype`."""
    return kernels_for(ids_T).quantized_embedding(ids_T, matrix, dtype)


def rms_norm(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight; weight is float32 (Zhang and Sennrich 2019)."""
    return kernels_for(x_TE).rms_norm(x_TE, weight_E, eps)


def add_rms_norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Adds x to the residual stream in place and returns the norm of the (rounded) sum."""
    return kernels_for(x_TE).add_rms_norm(x_TE, residual_TE, weight_E, eps)


def layer_norm(x_TE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) · weight + bias; both are float32 (Ba, Kiros and Hinton 2016)."""
    return kernels_for(x_TE).layer_norm(x_TE, weight_E, bias_E, eps)


def add_layer_norm(x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    """Adds x to the residual stream in place and returns the norm of the (rounded) sum."""
    return kernels_for(x_TE).add_layer_norm(x_TE, residual_TE, weight_E, bias_E, eps)


def gelu(x_TE: Tensor) -> Tensor:
    """x · Φ(x)."""
    return kernels_for(x_TE).gelu(x_TE)


def gelu_tanh(x_TE: Tensor) -> Tensor:
    """The tanh form of GELU."""
    return kernels_for(x_TE).gelu_tanh(x_TE)


def relu(x_TE: Tensor) -> Tensor:
    """max(x, 0)."""
    return kernels_for(x_TE).relu(x_TE)


def silu_mul(gate_up_TE: Tensor) -> Tensor:
    """[gate | up] → silu(gate) · up, of half the width."""
    return kernels_for(gate_up_TE).silu_mul(gate_up_TE)


def gelu_tanh_mul(gate_up_TE: Tensor) -> Tensor:
    """[gate | up] → gelu(gate) · up with the tanh form of GELU, of half the width."""
    return kernels_for(gate_up_TE).gelu_tanh_mul(gate_up_TE)


def rotary_and_write(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    positions_T: Tensor,
    table_PD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots_T: Tensor,
    q_weight_D: Tensor | None = None,
    k_weight_D: Tensor | None = None,
    eps: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Turns the halves of each head of q and k by its position's angles, then writes k and v as `write_kv` does.

    q is turned in place; what k holds afterwards is not defined. table: float32, per position D/2 cosines then D/2
    sines. With weights (float32) each head is RMS-normed first. q, k and v may be views of a wider row: heads must be
    contiguous, tokens any distance apart; positions are int64.
    """
    kernels_for(q_THD).rotary_and_write(
        q_THD,
        k_TGD,
        v_TGD,
        positions_T,
        table_PD,
        k_cache,
        v_cache,
        slots_T,
        q_weight_D,
        k_weight_D,
        eps,
        k_scale,
        v_scale,
    )


def write_kv(
    k_TGD: Tensor,
    v_TGD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots_T: Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Puts each token's keys and values at its slot (block · B + offset, int64) of caches [blocks, G, B, D].

    Caches of 8-bit floats hold k / k_scale and v / v_scale, saturated; others know no scale. On a GPU, where steps are
    padded, a negative slot means that nothing is written.
    """
    kernels_for(k_TGD).write_kv(k_TGD, v_TGD, k_cache, v_cache, slots_T, k_scale, v_scale)


def copy_blocks(from_PBX: Tensor, to_PBX: Tensor, sources_N: Tensor, destinations_N: Tensor) -> None:
    """Copies block sources[n] of one tensor to block destinations[n] of another or the same, in each of P planes.

    Blocks hold X numbers in a row; planes and blocks may lie any distance apart. Ids are int64. No block may be written
    twice, nor written and read.
    """
    kernels_for(from_PBX).copy_blocks(from_PBX, to_PBX, sources_N, destinations_N)


def paged_attention(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    query_start: Tensor,
    seq_lens_R: Tensor,
    block_tables: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    causal: bool = True,
    sinks_H: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    split_tokens: int = 0,
) -> Tensor:
    """Attention of every row's new tokens over its own paged context; keys are already in the caches.

    Row r has tokens query_start[r] … query_start[r+1]-1 (int32, R+1), the last ones of its seq_lens[r] (int32); logical
    block i of its context lies in physical block block_tables[r, i] (int32). A query sees the keys up to its own, with
    `window` so many of them, its own included; without `causal` (and then without window) all of its row's. With
    `softcap` scores are c · tanh(score / c). Query head h reads key/value head h // (H/G).
    `sinks_H` (float32) is one more score per query head, of a key without a value. Caches of 8-bit floats hold keys
    and values divided by their scale. Every row has at least one token; where there are as many tokens as rows, each
    has one. A row of length 0 (which pads a step) gets zeros. Table entries past a row's length and cache slots never
    written are not looked at.
    With `split_tokens` (a power of two, 64 or more) a GPU gives a token the same bits in every batch and chunk, as a
    CPU always does; long contexts are then computed in parts of so many tokens.
    """
    return kernels_for(q_THD).paged_attention(
        q_THD, k_cache, v_cache, query_start, seq_lens_R, block_tables, scale, window, softcap, causal,
        sinks_H, k_scale, v_scale, split_tokens,
    )  # fmt: skip


def sample(logits_RV: Tensor, draws: Draws) -> tuple[list[int], list[float]]:
    """Tokens [D], and the best logit of each row [R]: NaN where a row has a NaN.

    Where the best logit is not finite the row's tokens mean nothing. float32 logits, rows contiguous.
    """
    return kernels_for(logits_RV).sample(logits_RV, draws)


def draw(
    raw_RV: Tensor,
    draws: DeviceDraws,
    tokens_D: Tensor,
    peaks_R: Tensor,
    adjustments: Adjustments | None = None,
    adjusted_RV: Tensor | None = None,
    random: bool = True,
    restricted: bool = True,
) -> None:
    """`sample` without waiting: fills tokens (int64), which are ids of the vocabulary in any case, and peaks.

    Adjusted logits are put into `adjusted`, or in place of the raw ones. random: whether any row has a temperature;
    restricted: whether any such row has a top-k or top-p that leaves something out.
    """
    kernels_for(raw_RV).draw(raw_RV, draws, tokens_D, peaks_R, adjustments, adjusted_RV, random, restricted)


def count_tokens(said_MV: Tensor, last_M: Tensor, rows_E: Tensor, tokens_E: Tensor, times_E: Tensor) -> None:
    """Adds times[e] to what is remembered of tokens[e] in rows[e] (int32 all); -1 is what `draw` put into last[row]."""
    kernels_for(said_MV).count_tokens(said_MV, last_M, rows_E, tokens_E, times_E)


def report_logprobs(raw_RV: Tensor, tokens_D: Tensor, wanted: Report) -> None:
    """Fills in the log-probabilities and ranks of what was drawn, and the best ones, falling, equals by their id."""
    kernels_for(raw_RV).report_logprobs(raw_RV, tokens_D, wanted)


def lay_out(order: Order, last_token_S: Tensor, tables_SB: Tensor, block_size: int, out: Layout) -> None:
    """Fills a step's inputs from what the host sent, having put new entries into the tables (int32) of their slots.

    A negative token is the last one drawn for its slot, last_token[slot] (int64).
    """
    kernels_for(order.rows_RC).lay_out(order, last_token_S, tables_SB, block_size, out)
