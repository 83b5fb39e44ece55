"""The compiled kernels: unpacks tensors into addresses and sizes for `_native`, and vouches for their layout.

Same signatures as `octavo.kernels.ops`. Everything here costs time in every layer of every step: no checks beyond
asserts, no conversions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo import env
from octavo.kernels import reference
from octavo.kernels.draws import Draws
from octavo.kernels.packed import PackedMatrix

try:
    from octavo.kernels import _native

    _missing = None
except ImportError as error:
    _missing = str(error)

_DTYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_SILU, _GELU_TANH, _GELU, _RELU = range(4)
_WHOLE_ROW = -1  # as a window

# MKL chooses the code of such a function at its first call, and before 2025.0 may run one of 12 bits for a thread when
# several threads make that call at once (github.com/pytorch/pytorch/issues/188792). Here one thread makes it.
for _function in (torch.cos, torch.sin, torch.exp, torch.tanh):
    _function(torch.zeros(1))


@cache
def available() -> bool:
    """Whether compiled kernels are there and wanted; says so once where they are not."""
    if env.NO_NATIVE:
        return False
    if _missing is not None:
        logging.getLogger(__name__).warning(
            "no compiled kernels (%s): running on plain torch, several times slower; "
            "install a C++20 compiler and then octavo again",
            _missing,
        )
    return _missing is None


def use_threads(count: int) -> None:
    """How many threads compute, the caller's included; torch's own operations too."""
    torch.set_num_threads(count)
    if _missing is None:
        _native.set_thread_count(count)


def most_rows(dtype: torch.dtype) -> int:
    """Rows up to which the compiled product is used. Beyond, torch's is quicker, but its last bits depend on them."""
    return _native.linear_rows(_DTYPE[dtype])


def new_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


class Compiled:
    """Calls `native`, the module itself or a `Program` that records, with outputs made by `empty(shape, dtype)`."""

    def __init__(self, native: Any, empty: Callable[[tuple[int, ...], torch.dtype], Tensor]) -> None:
        self._native = native
        self._empty = empty

    def _most_rows(self, dtype: torch.dtype) -> int:
        return most_rows(dtype)

    def linear(
        self, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, full_precision: bool = False
    ) -> Tensor:
        tokens, inner = x_TK.shape
        if not full_precision and tokens > self._most_rows(x_TK.dtype):
            return F.linear(x_TK, weight_NK, bias_N)
        outer = weight_NK.size(0)
        assert weight_NK.is_contiguous()
        assert x_TK.stride(1) == 1
        y_TN = (
            self._empty((tokens, outer), torch.float32) if full_precision else self._empty((tokens, outer), x_TK.dtype)
        )
        dtype = _DTYPE[x_TK.dtype]
        self._native.linear(
            dtype,
            0 if full_precision else dtype,
            x_TK.data_ptr(),
            x_TK.stride(0),
            weight_NK.data_ptr(),
            0 if bias_N is None else bias_N.data_ptr(),
            y_TN.data_ptr(),
            tokens,
            inner,
            outer,
        )
        return y_TN

    def quantized_linear(
        self, x_TK: Tensor, matrix: PackedMatrix, bias_N: Tensor | None = None, full_precision: bool = False
    ) -> Tensor:
        tokens, inner = x_TK.shape
        assert inner == matrix.columns
        assert x_TK.stride(1) == 1
        dtype = _DTYPE[x_TK.dtype]
        quantized = self._empty((_native.quantized_bytes(tokens, inner),), torch.uint8)
        self._native.quantize(dtype, x_TK.data_ptr(), x_TK.stride(0), quantized.data_ptr(), tokens, inner)
        y_TN = self._empty((tokens, matrix.rows), torch.float32 if full_precision else x_TK.dtype)
        self._native.quantized_linear(
            0 if full_precision else dtype,
            0 if bias_N is None else _DTYPE[bias_N.dtype],
            quantized.data_ptr(),
            matrix.data.data_ptr(),
            0 if bias_N is None else bias_N.data_ptr(),
            y_TN.data_ptr(),
            tokens,
        )
        return y_TN

    def quantized_embedding(self, ids_T: Tensor, matrix: PackedMatrix, dtype: torch.dtype) -> Tensor:
        assert ids_T.is_contiguous()
        assert ids_T.dtype is torch.int64
        out_TK = self._empty((ids_T.size(0), matrix.columns), dtype)
        self._native.quantized_embedding(
            _DTYPE[dtype], matrix.data.data_ptr(), ids_T.data_ptr(), out_TK.data_ptr(), ids_T.size(0), matrix.columns
        )
        return out_TK

    def rms_norm(self, x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        assert x_TE.is_contiguous()
        assert weight_E.dtype is torch.float32
        tokens, width = x_TE.shape
        out_TE = self._empty((tokens, width), x_TE.dtype)
        self._native.rms_norm(
            _DTYPE[x_TE.dtype], x_TE.data_ptr(), 0, weight_E.data_ptr(), out_TE.data_ptr(), eps, tokens, width
        )
        return out_TE

    def add_rms_norm(self, x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        assert x_TE.is_contiguous()
        assert residual_TE.is_contiguous()
        assert weight_E.dtype is torch.float32
        tokens, width = x_TE.shape
        out_TE = self._empty((tokens, width), x_TE.dtype)
        self._native.rms_norm(
            _DTYPE[x_TE.dtype],
            x_TE.data_ptr(),
            residual_TE.data_ptr(),
            weight_E.data_ptr(),
            out_TE.data_ptr(),
            eps,
            tokens,
            width,
        )
        return out_TE

    def layer_norm(self, x_TE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
        return self._layer_norm(x_TE, 0, weight_E, bias_E, eps)

    def add_layer_norm(self, x_TE: Tensor, residual_TE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
        assert residual_TE.is_contiguous()
        return self._layer_norm(x_TE, residual_TE.data_ptr(), weight_E, bias_E, eps)

    def _layer_norm(self, x_TE: Tensor, residual: int, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
        assert x_TE.is_contiguous()
        assert weight_E.dtype is bias_E.dtype is torch.float32
        tokens, width = x_TE.shape
        out_TE = self._empty((tokens, width), x_TE.dtype)
        self._native.layer_norm(
            _DTYPE[x_TE.dtype],
            x_TE.data_ptr(),
            residual,
            weight_E.data_ptr(),
            bias_E.data_ptr(),
            out_TE.data_ptr(),
            eps,
            tokens,
            width,
        )
        return out_TE

    def _act(self, x_TE: Tensor, activation: int) -> Tensor:
        assert x_TE.is_contiguous()
        tokens, width = x_TE.shape
        out_TE = self._empty((tokens, width), x_TE.dtype)
        self._native.act(_DTYPE[x_TE.dtype], activation, x_TE.data_ptr(), out_TE.data_ptr(), tokens, width)
        return out_TE

    def gelu(self, x_TE: Tensor) -> Tensor:
        return self._act(x_TE, _GELU)

    def gelu_tanh(self, x_TE: Tensor) -> Tensor:
        return self._act(x_TE, _GELU_TANH)

    def relu(self, x_TE: Tensor) -> Tensor:
        return self._act(x_TE, _RELU)

    def _act_mul(self, gate_up_TE: Tensor, activation: int) -> Tensor:
        assert gate_up_TE.is_contiguous()
        tokens, width = gate_up_TE.shape
        out_TE = self._empty((tokens, width // 2), gate_up_TE.dtype)
        self._native.act_mul(
            _DTYPE[gate_up_TE.dtype], activation, gate_up_TE.data_ptr(), out_TE.data_ptr(), tokens, width // 2
        )
        return out_TE

    def silu_mul(self, gate_up_TE: Tensor) -> Tensor:
        return self._act_mul(gate_up_TE, _SILU)

    def gelu_tanh_mul(self, gate_up_TE: Tensor) -> Tensor:
        return self._act_mul(gate_up_TE, _GELU_TANH)

    def rotary(
        self,
        q_THD: Tensor,
        k_TGD: Tensor,
        positions_T: Tensor,
        table_PD: Tensor,
        q_weight_D: Tensor | None = None,
        k_weight_D: Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        tokens, heads, head_size = q_THD.shape
        assert table_PD.size(1) == head_size <= 1024
        self._native.rotary(
            _DTYPE[q_THD.dtype],
            q_THD.data_ptr(),
            k_TGD.data_ptr(),
            _token_stride(q_THD),
            _token_stride(k_TGD),
            positions_T.data_ptr(),
            table_PD.data_ptr(),
            0 if q_weight_D is None else q_weight_D.data_ptr(),
            0 if k_weight_D is None else k_weight_D.data_ptr(),
            eps,
            tokens,
            heads,
            k_TGD.size(1),
            head_size,
        )

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
        q_weight_D: Tensor | None = None,
        k_weight_D: Tensor | None = None,
        eps: float = 0.0,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> None:
        self.rotary(q_THD, k_TGD, positions_T, table_PD, q_weight_D, k_weight_D, eps)
        self.write_kv(k_TGD, v_TGD, k_cache, v_cache, slots_T, k_scale, v_scale)

    def write_kv(
        self,
        k_TGD: Tensor,
        v_TGD: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slots_T: Tensor,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> None:
        tokens, kv_heads, head_size = k_TGD.shape
        assert k_scale == v_scale == 1, "no 8-bit caches here"
        assert k_cache.is_contiguous()
        assert v_cache.is_contiguous()
        self._native.write_kv(
            _DTYPE[k_TGD.dtype],
            k_TGD.data_ptr(),
            v_TGD.data_ptr(),
            _token_stride(k_TGD),
            _token_stride(v_TGD),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            slots_T.data_ptr(),
            tokens,
            kv_heads,
            head_size,
            k_cache.size(2),
        )

    def copy_blocks(self, from_PBX: Tensor, to_PBX: Tensor, sources_N: Tensor, destinations_N: Tensor) -> None:
        to_PBX[:, destinations_N] = from_PBX[:, sources_N]

    def paged_attention(
        self,
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
        if sinks_H is not None:  # plain torch, which is not recordable and says so
            return reference.paged_attention(
                q_THD, k_cache, v_cache, query_start, seq_lens_R, block_tables, scale, window, softcap, causal,
                sinks_H, k_scale, v_scale, split_tokens,
            )  # fmt: skip
        assert k_cache.dtype is q_THD.dtype
        tokens, heads, head_size = q_THD.shape
        _, kv_heads, block_size, _ = k_cache.shape
        assert block_tables.dtype is torch.int32
        assert seq_lens_R.dtype is torch.int32
        assert query_start.dtype is torch.int32
        out_THD = self._empty((tokens, heads, head_size), q_THD.dtype)
        self._native.paged_attention(
            _DTYPE[q_THD.dtype],
            q_THD.data_ptr(),
            _token_stride(q_THD),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            query_start.data_ptr(),
            seq_lens_R.data_ptr(),
            block_tables.data_ptr(),
            block_tables.stride(0),
            out_THD.data_ptr(),
            seq_lens_R.size(0),
            heads,
            kv_heads,
            head_size,
            block_size,
            scale,
            window if causal else _WHOLE_ROW,
            softcap,
        )
        return out_THD

    def sample(self, logits_RV: Tensor, draws: Draws) -> tuple[list[int], list[float]]:
        assert logits_RV.dtype is torch.float32
        assert logits_RV.stride(1) == 1
        rows, vocabulary = logits_RV.shape
        tokens_D, peaks_R = np.empty(len(draws.seeds_D), dtype=np.int64), np.empty(rows, dtype=np.float32)
        arrays = (
            draws.temperature_R,
            draws.min_p_R,
            draws.top_p_R,
            draws.top_k_R,
            draws.positions_R,
            draws.first_R1,
            draws.seeds_D,
            tokens_D,
            peaks_R,
        )
        addresses = [array.ctypes.data for array in arrays]
        _native.sample(logits_RV.data_ptr(), logits_RV.stride(0), rows, vocabulary, *addresses)
        return tokens_D.tolist(), peaks_R.tolist()

    # Of a CPU's matrices those of few bits are packed, and every product keeps a row's bits up to `most_rows`.
    group_linear = staticmethod(reference.group_linear)
    scaled_linear = staticmethod(reference.scaled_linear)
    invariant_linear = staticmethod(reference.invariant_linear)
    # Of a CPU's own steps nothing travels, and the host knows what is drawn.
    lay_out = staticmethod(reference.lay_out)
    draw = staticmethod(reference.draw)
    count_tokens = staticmethod(reference.count_tokens)
    report_logprobs = staticmethod(reference.report_logprobs)


def _token_stride(x_THD: Tensor) -> int:
    """Distance between tokens; heads must be contiguous."""
    token, head, element = x_THD.stride()
    assert head == x_THD.size(2)
    assert element == 1
    return token


compiled = Compiled(_native if _missing is None else None, new_tensor)
