"""What `ops` calls for tensors on a GPU: the launchers of this package, torch's own where they are better.

Satisfies `ops.Kernels` as a module, as `reference` does. What has no kernel yet comes from `reference`.
"""

from __future__ import annotations

from octavo.kernels.reference import (
    quantized_embedding,
    quantized_linear,
)
from octavo.kernels.triton.activation import gelu, gelu_tanh, gelu_tanh_mul, relu, silu_mul
from octavo.kernels.triton.attention import paged_attention
from octavo.kernels.triton.blocks import copy_blocks
from octavo.kernels.triton.layout import lay_out
from octavo.kernels.triton.linear import group_linear, invariant_linear, linear, scaled_linear
from octavo.kernels.triton.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from octavo.kernels.triton.rotary import rotary_and_write, write_kv
from octavo.kernels.triton.sampling import count_tokens, draw, report_logprobs, sample

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "copy_blocks",
    "count_tokens",
    "draw",
    "gelu",
    "gelu_tanh",
    "gelu_tanh_mul",
    "group_linear",
    "invariant_linear",
    "lay_out",
    "layer_norm",
    "linear",
    "paged_attention",
    "quantized_embedding",
    "quantized_linear",
    "relu",
    "report_logprobs",
    "rms_norm",
    "rotary_and_write",
    "sample",
    "scaled_linear",
    "silu_mul",
    "write_kv",
]
