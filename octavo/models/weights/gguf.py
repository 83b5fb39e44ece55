"""Weights from a GGUF file, as if they came from the Hugging Face checkpoint that it was made of.

Names are translated, quantized blocks become float32 (or stay as they are, for who can multiply with them), and what
llama.cpp's converter did to a family's tensors is undone. One tensor is in memory at a time. Block layouts: ggml's
quants; bits are unpacked as ggml's reference does, so values are equal to the last bit.
"""

# Shapes: B blocks, C bytes of a block, V values of a block.

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.checkpoint import Checkpoint, GGUFFile, TensorInfo
from octavo.checkpoint.checkpoint import shown
from octavo.checkpoint.gguf import TENSOR_TYPES
from octavo.errors import CheckpointError
from octavo.layers.quantization.packed import QuantizedRows, packable
from octavo.models.weights.names import GGUF_NAMES, to_huggingface

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Restore = Callable[[str, Tensor, Checkpoint], Tensor]

_VALUES_AT_ONCE = 1 << 16  # the steps in between stay in the processor's cache
_TYPES = {kind.name: kind for kind in TENSOR_TYPES.values()}
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_CONV1D = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # GPT-2 keeps these [in, out], llama.cpp [out, in]


def gguf_tensors(checkpoint: Checkpoint, quantized: bool = False) -> Iterator[tuple[str, Tensor | QuantizedRows]]:
    """Every weight under its Hugging Face name: float32, or as stored if it was float16 or bfloat16.

    With `quantized`, matrices whose blocks can be packed come as they are in the file.
    """
    file = GGUFFile(checkpoint.path)
    model_type = checkpoint.config["model_type"]
    names = GGUF_NAMES[model_type]
    restore = _RESTORE.get(model_type, _as_is)
    for info in file.tensors.values():
        try:
            name = to_huggingface(info.name, names)
        except KeyError:
            raise CheckpointError(
                f"{file.path}: tensor {shown(info.name)} is unknown in a {model_type} model"
            ) from None
        if name is None:
            continue
        values = partial(_restored, restore, name, file, info, checkpoint)
        if quantized and len(info.shape) == 2 and packable(info.type):
            # Rows are all that a converter reorders in a matrix that may be quantized; transposed is how it is wanted.
            order = restore(name, torch.arange(info.shape[0]), checkpoint)
            yield name, QuantizedRows(info.type, file.raw(info.name), info.shape, order, values)
        else:
            yield name, values()


def _restored(restore: Restore, name: str, file: GGUFFile, info: TensorInfo, checkpoint: Checkpoint) -> Tensor:
    return restore(name, read_tensor(file, info), checkpoint)


def read_tensor(file: GGUFFile, info: TensorInfo) -> Tensor:
    """A tensor's values in its own shape. Plain ones are views of the file, which is mapped copy-on-write."""
    raw = file.raw(info.name)
    if info.type in _PLAIN:
        return torch.from_numpy(raw).view(_PLAIN[info.type]).view(info.shape)
    return torch.from_numpy(dequantize(raw, info.type)).view(info.shape)


def dequantize(raw: Bytes, kind: str) -> Floats:
    """Bytes of whole blocks -> float32 values, flat."""
    _, block_values, block_bytes = _TYPES[kind]
    blocks_BC = raw.reshape(-1, block_bytes)
    values_BV = np.empty((len(blocks_BC), block_values), np.float32)
    step = _VALUES_AT_ONCE // block_values
    with np.errstate(invalid="ignore", over="ignore"):  # infinite scales are the file's business
        for start in range(0, len(blocks_BC), step):
            _UNPACK[kind](blocks_BC[start : start + step], values_BV[start : start + step])
    return values_BV.reshape(-1)


def _half(blocks_BC: Bytes, start: int) -> Floats:
    """The float16 at a byte of each block, as float32 [B, 1]."""
    return np.ascontiguousarray(blocks_BC[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Low halves of the bytes, then high halves: [..., N] -> [..., 2 N]."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _fifth_bits(masks_B4: Bytes) -> Bytes:
    """Bit e of each little-endian u32, at its place above a nibble: [B, 4] -> [B, 32]."""
    return np.unpackbits(np.ascontiguousarray(masks_B4), axis=1, bitorder="little") << np.uint8(4)


# Each fills out_BV. A product and then a sum, each rounded, as the reference does: a fused one would differ.


def _q4_0(blocks_BC: Bytes, out_BV: Floats) -> None:
    codes_BV = _nibbles(blocks_BC[:, 2:18]).view(np.int8) - np.int8(8)
    np.multiply(codes_BV, _half(blocks_BC, 0), out=out_BV)


def _q4_1(blocks_BC: Bytes, out_BV: Floats) -> None:
    np.multiply(_nibbles(blocks_BC[:, 4:20]), _half(blocks_BC, 0), out=out_BV)
    out_BV += _half(blocks_BC, 2)


def _q5_0(blocks_BC: Bytes, out_BV: Floats) -> None:
    codes_BV = _nibbles(blocks_BC[:, 6:22]) | _fifth_bits(blocks_BC[:, 2:6])
    np.multiply(codes_BV.view(np.int8) - np.int8(16), _half(blocks_BC, 0), out=out_BV)


def _q5_1(blocks_BC: Bytes, out_BV: Floats) -> None:
    codes_BV = _nibbles(blocks_BC[:, 8:24]) | _fifth_bits(blocks_BC[:, 4:8])
    np.multiply(codes_BV, _half(blocks_BC, 0), out=out_BV)
    out_BV += _half(blocks_BC, 2)


def _q8_0(blocks_BC: Bytes, out_BV: Floats) -> None:
    np.multiply(blocks_BC[:, 2:34].view(np.int8), _half(blocks_BC, 0), out=out_BV)


def _k_values(blocks_BC: Bytes, codes_B8V: Bytes, out_BV: Floats) -> None:
    """Q4_K and Q5_K: eight groups of codes. Twelve bytes hold a 6-bit scale and a 6-bit minimum for each group."""
    first, second, third = blocks_BC[:, 4:8], blocks_BC[:, 8:12], blocks_BC[:, 12:16]
    scales_B8 = np.concatenate((first & 63, (third & 15) | ((first >> 6) << 4)), axis=1)
    least_B8 = np.concatenate((second & 63, (third >> 4) | ((second >> 6) << 4)), axis=1)
    out_B8V = out_BV.reshape(-1, 8, 32)
    np.multiply(codes_B8V, (_half(blocks_BC, 0) * scales_B8)[:, :, None], out=out_B8V)
    out_B8V -= (_half(blocks_BC, 2) * least_B8)[:, :, None]


def _q4_k(blocks_BC: Bytes, out_BV: Floats) -> None:
    codes = _nibbles(blocks_BC[:, 16:144].reshape(-1, 4, 32))
    _k_values(blocks_BC, codes.reshape(-1, 8, 32), out_BV)


def _q5_k(blocks_BC: Bytes, out_BV: Floats) -> None:
    codes = _nibbles(blocks_BC[:, 48:176].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    group = np.arange(8, dtype=np.uint8)[:, None]
    high = ((blocks_BC[:, None, 16:48] >> group) & np.uint8(1)) << np.uint8(4)
    _k_values(blocks_BC, codes | high, out_BV)


def _q6_k(blocks_BC: Bytes, out_BV: Floats) -> None:
    low = _nibbles(blocks_BC[:, 0:128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shift = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = ((blocks_BC[:, 128:192].reshape(-1, 2, 1, 32) >> shift) & np.uint8(3)) << np.uint8(4)
    codes = (low | high).view(np.int8).reshape(-1, 16, 16) - np.int8(32)
    step = _half(blocks_BC, 208) * blocks_BC[:, 192:208].view(np.int8)
    np.multiply(codes, step[:, :, None], out=out_BV.reshape(-1, 16, 16))


_UNPACK: dict[str, Callable[[Bytes, Floats], None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}


def _as_is(name: str, values: Tensor, checkpoint: Checkpoint) -> Tensor:  # noqa: ARG001
    return values


def _restore_llama(name: str, values: Tensor, checkpoint: Checkpoint) -> Tensor:
    """llama.cpp rotates neighbouring dimensions where Hugging Face rotates halves, and reorders q and k rows for it."""
    if ".q_proj." in name:
        heads = checkpoint.config["num_attention_heads"]
    elif ".k_proj." in name:
        heads = checkpoint.config["num_key_value_heads"]
    else:
        return values
    if values.shape[0] % (2 * heads):
        raise CheckpointError(f"{checkpoint.path}: tensor {name!r} has {values.shape[0]} rows for {heads} heads")
    pairs = values.view(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape)


def _restore_gemma3(name: str, values: Tensor, checkpoint: Checkpoint) -> Tensor:  # noqa: ARG001
    """Gemma scales by 1 + weight; llama.cpp stores the sum."""
    return values - 1 if name.endswith("norm.weight") else values


def _restore_gpt2(name: str, values: Tensor, checkpoint: Checkpoint) -> Tensor:  # noqa: ARG001
    return values.t() if name.endswith(_CONV1D) else values


_RESTORE: dict[str, Restore] = {
    "llama": _restore_llama,
    "gemma3_text": _restore_gemma3,
    "gpt2": _restore_gpt2,
}
