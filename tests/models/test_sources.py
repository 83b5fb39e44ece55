"""Safetensors: what its own library wrote comes back, and what it did not write is refused by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.checkpoint import Checkpoint
from octavo.errors import CheckpointError
from octavo.models.weights.sources import open_source

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.tensor(7.0, dtype=torch.float16),
}


def source(folder: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint(name="m", path=folder, format="safetensors", config={"model_type": "llama"})
    return dict(open_source(checkpoint))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        source(folder)
    return str(caught.value)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        assert torch.equal(found[name], values)


def test_one_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same(source(tmp_path), TENSORS)


def test_a_dummy_checkpoint_has_no_weights(tmp_path: Path) -> None:
    assert not list(open_source(Checkpoint(name="m", path=tmp_path, format="dummy", config={"model_type": "llama"})))


def sharded(folder: Path, index: bool = True) -> list[Path]:
    files = [folder / f"model-0000{place}-of-00003.safetensors" for place in (1, 2, 3)]
    for file, (name, values) in zip(files, TENSORS.items(), strict=True):
        save_file({name: values}, file)
    if index:
        write_index(folder, {name: file.name for file, name in zip(files, TENSORS, strict=True)})
    return files


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("index", [True, False])
def test_shards(tmp_path: Path, index: bool) -> None:
    sharded(tmp_path, index)
    assert_same(source(tmp_path), TENSORS)


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, index: bool) -> None:
    sharded(tmp_path, index)[1].unlink()
    assert "model-00002-of-00003.safetensors: this part of the model is missing" in refusal(tmp_path)


def test_a_promised_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    files = sharded(tmp_path)
    save_file({"other": TENSORS["b"]}, files[1])
    message = refusal(tmp_path)
    assert "model-00002-of-00003.safetensors" in message
    assert "'b'" in message


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    files = sharded(tmp_path)
    save_file({"b": TENSORS["b"], "a": TENSORS["a"]}, files[1])
    assert "tensor 'a' is already in model-00001-of-00003.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 3}, "a"])
def test_an_index_that_says_nothing(tmp_path: Path, weight_map: Any) -> None:
    sharded(tmp_path)
    write_index(tmp_path, weight_map)
    assert "weight_map" in refusal(tmp_path)


def test_an_index_may_not_leave_its_folder(tmp_path: Path) -> None:
    sharded(tmp_path)
    write_index(tmp_path, {"a": "../model-00001-of-00003.safetensors"})
    assert "outside its folder" in refusal(tmp_path)


def test_other_copies_of_the_weights_are_left_alone(tmp_path: Path) -> None:
    sharded(tmp_path, index=False)
    save_file({"x": TENSORS["a"]}, tmp_path / "consolidated.safetensors")
    assert_same(source(tmp_path), TENSORS)


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def file_of(header: Any, data: int = 8, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)


GOOD = {"t": tensor()}
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a safetensors file"),
    "seven bytes": (bytes(7), "not a safetensors file"),
    "header of no bytes": (file_of(GOOD, length=0), "header of 0 bytes"),
    "header of 2**63 bytes": (file_of(GOOD, length=2**63), "header of 9223372036854775808 bytes"),
    "header longer than the file": (file_of(GOOD, length=500), "truncated"),
    "header that is no text": (file_of(b"\xff\xff"), "header is not valid"),
    "header that is no JSON": (file_of(b"{]"), "header is not valid"),
    "header that is a list": (file_of([1]), "not a JSON object"),
    "header nested too deep": (file_of(b'{"a":' * 100_000), "header is not valid"),
    "a name twice": (file_of(b'{"t": {}, "t": {}}'), "twice"),
    "no description": (file_of({"t": 3}), "'t' has no description"),
    "an unknown type": (file_of({"t": tensor("F4")}), "'t' is of the type 'F4'"),
    "a type that is no text": (file_of({"t": tensor(["F32"])}), "'t' is of the type"),  # type: ignore[arg-type]
    "a negative size": (file_of({"t": tensor(shape=[-2])}), "'t' has a shape"),
    "a size that is no number": (file_of({"t": tensor(shape=["2"])}), "'t' has a shape"),
    "a shape that overflows": (file_of({"t": tensor(shape=[2**62, 4])}), "'t' has 8 bytes of data"),
    "too many sizes": (file_of({"t": tensor(shape=[1] * 64 + [2])}), "'t' has 65 dimensions; at most 64"),
    "offsets the wrong way": (file_of({"t": tensor(offsets=[8, 0])}), "'t' has no valid data_offsets"),
    "three offsets": (file_of({"t": tensor(offsets=[0, 8, 9])}), "'t' has no valid data_offsets"),
    "no offsets": (file_of({"t": tensor(offsets=None)}), "'t' has no valid data_offsets"),
    "another size than the type's": (file_of({"t": tensor("F16")}), "'t' has 8 bytes of data"),
    "data beyond the file": (file_of({"t": tensor(offsets=[0, 8])}, data=4), "truncated"),
    "the last byte missing": (file_of(GOOD, data=7), "truncated"),
    "bytes left over": (file_of(GOOD, data=9), "its header describes 8"),
    "a hole": (file_of({"t": tensor(offsets=[8, 16])}, data=16), "'t' begins at byte 8"),
    "two in one place": (file_of({"t": tensor(), "u": tensor()}), "'u' begins at byte 0 of the data, not at 8"),
}


@pytest.mark.parametrize(("raw", "message"), BAD.values(), ids=BAD.keys())
def test_nonsense_is_refused_and_named(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw)
    found = refusal(tmp_path)
    assert message in found
    assert "model.safetensors" in found


def test_a_file_cut_short_while_it_is_read_is_an_error_not_a_crash(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({name: torch.ones(4096) for name in "abc"}, file)
    checkpoint = Checkpoint(name="m", path=tmp_path, format="safetensors", config={"model_type": "llama"})
    tensors = open_source(checkpoint)
    next(tensors)
    with file.open("r+b") as opened:
        opened.truncate(1000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: was cut short while tensor '[abc]'"):
        next(tensors)
