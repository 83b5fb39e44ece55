"""The GGUF container: metadata and where each tensor lies, every number checked before it is believed.

A model file is input from a stranger. Counts, lengths, offsets, shapes and types are compared with the size of the
file before anything is allocated or read; what does not fit raises CheckpointError, naming the file and the key or
tensor. Tensor data is mapped, not read. Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3.
Knows nothing of model families, tokenizers or how blocks become numbers.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from octavo.checkpoint.checkpoint import shown
from octavo.errors import CheckpointError

_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_KEY_BYTES = (1 << 16) - 1  # the format's own limit
_MAX_TENSOR_NAME_BYTES = 1024
_MAX_DIMS = 4
_MAX_ARRAY_DEPTH = 4
_MAX_ALIGNMENT = 1 << 20
_DEFAULT_ALIGNMENT = 32

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY, _BOOL = 8, 9, 7


class TensorType(NamedTuple):
    """How values are stored: `block_bytes` hold `block_values` values."""

    name: str
    block_values: int
    block_bytes: int


#: Types octavo can turn into numbers, by their id in the file.
TENSOR_TYPES: dict[int, TensorType] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
}

#: Types that exist, so that an error can name them.
_OTHER_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `shape` in torch's order (slowest dimension first), `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int

    @property
    def values(self) -> int:
        return prod(self.shape)


class StringArray:
    """An array of strings in the file, decoded when asked for: a vocabulary is walked often and read seldom."""

    def __init__(self, data: mmap.mmap, starts: array[int], ends: array[int], where: str) -> None:
        self._data, self._starts, self._ends, self._where = data, starts, ends, where

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> str:
        return self._decode(self._data[self._starts[index] : self._ends[index]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def tolist(self) -> list[str]:
        """Every string. Raises CheckpointError if one is not UTF-8."""
        data = self._data
        try:
            return [str(data[start:end], "utf-8") for start, end in zip(self._starts, self._ends, strict=True)]
        except UnicodeDecodeError:
            raise CheckpointError(f"{self._where}: holds a string that is not UTF-8") from None

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self._where}: holds a string that is not UTF-8") from None


class _Cursor:
    """Reads the header front to back and never past the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.end, self.position = path, data, len(data), 0

    def fail(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {what}")

    def take(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they start."""
        start = self.position
        if count > self.end - start:
            self.fail(f"{what} needs {count} bytes, but only {self.end - start} are left; is the file truncated?")
        self.position = start + count
        return start

    def scalar(self, form: struct.Struct, what: str) -> Any:
        return form.unpack_from(self.data, self.take(form.size, what))[0]

    def string(self, what: str, limit: int | None = None) -> str:
        length = self.scalar(_U64, what)
        if limit is not None and length > limit:
            self.fail(f"{what} is {length} bytes long, more than {limit}")
        start = self.take(length, what)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what, depth + 1)
        if kind not in _SCALARS:
            self.fail(f"{what} has the unknown value type {kind}")
        return self.scalar(_SCALARS[kind], what)

    def array(self, what: str, depth: int) -> Any:
        if depth > _MAX_ARRAY_DEPTH:
            self.fail(f"{what} nests arrays deeper than {_MAX_ARRAY_DEPTH}")
        kind = self.scalar(_U32, what)
        count = self.scalar(_U64, what)
        if kind == _STRING:
            return self.strings(count, what)
        if kind == _ARRAY:
            self.fits(count, 12, what)
            return [self.array(what, depth + 1) for _ in range(count)]
        if kind not in _SCALARS:
            self.fail(f"{what} has the unknown value type {kind}")
        form = _SCALARS[kind]
        self.fits(count, form.size, what)
        start = self.take(count * form.size, what)
        dtype = np.dtype("u1" if kind == _BOOL else form.format)
        values = np.frombuffer(self.data, dtype, count, start) if count else np.empty(0, dtype)
        return values.astype(bool) if kind == _BOOL else values

    def fits(self, count: int, width: int, what: str) -> None:
        if count > (self.end - self.position) // width:
            self.fail(f"{what} claims {count} values, more than the file holds")

    def strings(self, count: int, what: str) -> StringArray:
        self.fits(count, 8, what)
        starts, ends = array("Q"), array("Q")
        data, end, position, unpack = self.data, self.end, self.position, _U64.unpack_from
        for _ in range(count):  # a loop of few steps: vocabularies have hundreds of thousands of strings
            if position + 8 > end:
                self.fail(f"{what} runs past the end of the file; is it truncated?")
            (length,) = unpack(data, position)
            position += 8
            starts.append(position)
            if length > end - position:
                self.fail(f"{what} holds a string of {length} bytes, more than the file has left")
            position += length
            ends.append(position)
        self.position = position
        return StringArray(data, starts, ends, f"{self.path}: {what}")


class GGUFFile:
    """An open GGUF file.

    `metadata`: numbers, strings, `StringArray`s, numpy arrays (and lists of arrays). `tensors` is in file order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = _map(path)
        cursor = _Cursor(path, self._data)
        num_tensors, num_keys = _counts(cursor)
        self.metadata: dict[str, Any] = _metadata(cursor, num_keys)
        split = self.metadata.get("split.count", 1)
        if not isinstance(split, int) or split > 1:
            cursor.fail("is one part of a split model; join the parts with `llama-gguf-split --merge` first")
        infos = [_tensor_info(cursor) for _ in range(num_tensors)]
        self.tensors: dict[str, TensorInfo] = _placed(cursor, infos, _alignment(cursor, self.metadata))

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor: a view of the mapped file. Writing to it never reaches the file.

        Raises CheckpointError if the file has become shorter since it was opened: its missing pages cannot be read.
        """
        info = self.tensors[name]
        if self._data.size() < info.offset + info.nbytes:
            raise CheckpointError(f"{self.path}: was cut short while tensor {shown(name)} was being read")
        return np.frombuffer(self._data, np.uint8, info.nbytes, info.offset)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            # A private copy-on-write mapping: arrays over it are writable, which spares torch a copy and a warning.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise CheckpointError(f"{path}: is empty") from None


def _counts(cursor: _Cursor) -> tuple[int, int]:
    if cursor.data[:4] != b"GGUF":
        cursor.fail("is not a GGUF file (it does not begin with GGUF)")
    cursor.take(4, "the magic")
    version = cursor.scalar(_U32, "the version")
    if version not in (2, 3):
        big_endian = version != 0 and version & 0xFFFF == 0
        cursor.fail("is big-endian" if big_endian else f"is GGUF version {version}; octavo reads versions 2 and 3")
    num_tensors: int = cursor.scalar(_U64, "the number of tensors")
    num_keys: int = cursor.scalar(_U64, "the number of keys")
    if num_tensors > _MAX_TENSORS:
        cursor.fail(f"claims {num_tensors} tensors; at most {_MAX_TENSORS} are believed")
    if num_keys > _MAX_KEYS:
        cursor.fail(f"claims {num_keys} metadata keys; at most {_MAX_KEYS} are believed")
    return num_tensors, num_keys


def _metadata(cursor: _Cursor, num_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.string("a metadata key", _MAX_KEY_BYTES)
        if key in metadata:
            cursor.fail(f"has the key {shown(key)} twice")
        what = f"key {shown(key)}"
        metadata[key] = cursor.value(cursor.scalar(_U32, what), what)
    return metadata


def _tensor_info(cursor: _Cursor) -> TensorInfo:
    """One entry of the tensor table; its offset still counts from the start of the data section."""
    name = cursor.string("a tensor's name", _MAX_TENSOR_NAME_BYTES)
    what = f"tensor {shown(name)}"
    num_dims = cursor.scalar(_U32, what)
    if not 1 <= num_dims <= _MAX_DIMS:
        cursor.fail(f"{what} has {num_dims} dimensions; 1 to {_MAX_DIMS} are possible")
    dims = [cursor.scalar(_U64, what) for _ in range(num_dims)]
    type_id = cursor.scalar(_U32, what)
    offset = cursor.scalar(_U64, what)
    if type_id not in TENSOR_TYPES:
        readable = ", ".join(kind.name for kind in TENSOR_TYPES.values())
        stored = _OTHER_TYPES.get(type_id, f"the unknown type {type_id}")
        cursor.fail(f"{what} is stored as {stored}; octavo reads {readable}")
    kind = TENSOR_TYPES[type_id]
    if 0 in dims:
        cursor.fail(f"{what} has a dimension of size 0")
    if dims[0] % kind.block_values:
        cursor.fail(f"{what} has rows of {dims[0]} values, not a multiple of {kind.name}'s {kind.block_values}")
    nbytes = prod(dims) // kind.block_values * kind.block_bytes  # Python's integers do not overflow
    return TensorInfo(name, tuple(reversed(dims)), kind.name, offset, nbytes)


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(value) is not int or not 8 <= value <= _MAX_ALIGNMENT or value & (value - 1):
        cursor.fail(f"general.alignment is {shown(value)}, not a power of two from 8 to {_MAX_ALIGNMENT}")
    return value


def _placed(cursor: _Cursor, infos: list[TensorInfo], alignment: int) -> dict[str, TensorInfo]:
    """The tensors by name with offsets from the file's start, all inside the file and none over another."""
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for info in infos:
        what = f"tensor {shown(info.name)}"
        if info.name in tensors:
            cursor.fail(f"has {what} twice")
        start = data_start + info.offset
        if info.offset % alignment:
            cursor.fail(f"{what} starts at {info.offset}, which is not aligned to {alignment}")
        if start + info.nbytes > cursor.end:
            cursor.fail(f"{what} ends at byte {start + info.nbytes}, past the end of the file ({cursor.end})")
        tensors[info.name] = TensorInfo(info.name, info.shape, info.type, start, info.nbytes)
    end, last = 0, ""
    for info in sorted(tensors.values(), key=lambda info: info.offset):
        if info.offset < end:
            cursor.fail(f"tensors {shown(last)} and {shown(info.name)} overlap")
        end, last = info.offset + info.nbytes, info.name
    return tensors
