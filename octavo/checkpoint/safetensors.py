"""Safetensors files: which belong to a model, and what their headers say, every number checked before it is believed.

Tensor by tensor, so that an error can name the tensor; no data is read. Format: github.com/huggingface/safetensors.
Knows nothing of model families.
"""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from octavo.checkpoint.checkpoint import read_json, shown
from octavo.checkpoint.gguf import TensorInfo
from octavo.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_MAX_DIMS = 64  # torch's own limit; the product of a million sizes would take an hour
_MAX_FILE_NAME_BYTES = 255  # what file systems take
_SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\.safetensors")


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The files to read, and which file an index promises for each tensor."""
    if (single := folder / "model.safetensors").is_file():
        return [single], {}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        promised = read_json(index).get("weight_map")
        if not isinstance(promised, dict) or not promised or not all(isinstance(v, str) for v in promised.values()):
            raise CheckpointError(f"{index}: its weight_map does not say which file holds which tensor")
        names = sorted(set(promised.values()))
        if any(Path(name).name != name or len(name.encode(errors="replace")) > _MAX_FILE_NAME_BYTES for name in names):
            raise CheckpointError(f"{index}: names files outside its folder, or with names no file has")
    else:
        promised = {}
        names = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))
        names = _whole_set(names)
    if not names:
        raise CheckpointError(f"{folder}: has no *.safetensors file")
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: this part of the model is missing; download it again")
    return [folder / name for name in names], promised


def _whole_set(names: list[str]) -> list[str]:
    """File names, with those added that a numbered set (…-00001-of-00003) should have."""
    numbered = [match for name in names if (match := _SHARD.fullmatch(name))]
    if not numbered:
        return names
    last = numbered[0]
    stem = last[0][: last.start(1)]
    return [f"{stem}{place:05}-of-{last[2]}.safetensors" for place in range(1, int(last[2]) + 1)]


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The file's tensors, every one inside the file, none over another, no byte left over. Raises CheckpointError."""
    try:
        with file.open("rb") as opened:
            size = file.stat().st_size
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{file}: not a safetensors file, or truncated (header of {length} bytes)")
            header = json.loads(opened.read(length).decode("utf-8"), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its header is not valid: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its header is not a JSON object")
    header.pop("__metadata__", None)
    infos = {name: _info(file, name, entry) for name, entry in header.items()}
    end = 0
    for info in sorted(infos.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            raise CheckpointError(
                f"{file}: tensor {shown(info.name)} begins at byte {info.offset} of the data, not at {end}"
            )
        end += info.nbytes
    if 8 + length + end != size:
        raise CheckpointError(f"{file}: has {size - 8 - length} bytes of data, its header describes {end}; truncated?")
    return infos


def _info(file: Path, name: str, entry: Any) -> TensorInfo:
    """A tensor, if its description makes sense; its offset counts from the start of the data."""

    def fail(what: str) -> NoReturn:
        raise CheckpointError(f"{file}: tensor {shown(name)} {what}")

    if not isinstance(entry, dict):
        fail("has no description")
    dtype = str(entry.get("dtype"))
    if dtype not in _DTYPE_BYTES:
        fail(f"is of the type {dtype[:32]!r}, which octavo does not read")
    shape = _whole_numbers(entry.get("shape"))
    if shape is None:
        fail("has a shape that is not a list of sizes")
    if len(shape) > _MAX_DIMS:
        fail(f"has {len(shape)} dimensions; at most {_MAX_DIMS} are possible")
    offsets = _whole_numbers(entry.get("data_offsets"))
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        fail("has no valid data_offsets")
    if prod(shape) * _DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
        fail(f"has {offsets[1] - offsets[0]} bytes of data, not those of {dtype} {str(shape)[:100]}")
    return TensorInfo(name, tuple(shape), dtype, offsets[0], offsets[1] - offsets[0])


def _whole_numbers(value: Any) -> list[int] | None:
    """The value, if it is a list of sizes or places."""
    good = isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
    return list(value) if good else None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found
