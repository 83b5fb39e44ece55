"""The GGUF container: what ggml's own writer wrote comes back, and what a stranger wrote is refused."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_bytes import ARRAY, STRING, U32, array, container, entry, string, tensor
from gguf_files import write_gguf

from octavo.checkpoint import GGUFFile, StringArray
from octavo.errors import CheckpointError


def opened(tmp_path: Path, raw: bytes) -> GGUFFile:
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    return GGUFFile(path)


def test_what_ggml_wrote_comes_back(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    kinds = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
    for kind in kinds:
        getattr(writer, f"add_{kind}")(kind, 7)
    writer.add_bool("yes", True)
    writer.add_string("text", "héllo 😀")
    writer.add_array("numbers", [3, -1, 2])
    writer.add_array("flags", [True, False])
    writer.add_array("words", ["a", "", "漢字"])
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    quantized = np.arange(3 * 34, dtype=np.uint8).reshape(3, 34)
    writer.add_tensor("matrix", matrix)
    writer.add_tensor("quantized", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = GGUFFile(tmp_path / "model.gguf")
    assert {kind: file.metadata[kind] for kind in kinds} == dict.fromkeys(kinds, 7)
    assert file.metadata["yes"] is True
    assert file.metadata["text"] == "héllo 😀"
    assert file.metadata["numbers"].tolist() == [3, -1, 2]
    assert file.metadata["flags"].tolist() == [True, False]
    words = file.metadata["words"]
    assert isinstance(words, StringArray)
    assert (len(words), words[2], list(words)) == (3, "漢字", ["a", "", "漢字"])
    assert file.tensors["matrix"].shape == (2, 3)
    assert (file.raw("matrix").view(np.float32).reshape(2, 3) == matrix).all()
    assert (file.tensors["quantized"].shape, file.tensors["quantized"].type) == ((3, 32), "Q8_0")
    assert (file.raw("quantized").reshape(3, 34) == quantized).all()


def test_writing_to_a_tensor_never_reaches_the_file(tmp_path: Path) -> None:
    file = GGUFFile(write_gguf(tmp_path / "model.gguf"))
    before = file.path.read_bytes()
    file.raw("output_norm.weight")[:] = 1
    assert file.path.read_bytes() == before


def nested(depth: int) -> bytes:
    value = array(U32, 1, struct.pack("<I", 5))
    for _ in range(depth - 1):
        value = array(ARRAY, 1, value)
    return value


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "not gguf": (container(magic=b"GGML"), "not a GGUF file"),
    "version 1": (container(version=1), "version 1"),
    "big-endian": (container(version=3 << 24), "big-endian"),
    "nothing but the magic": (b"GGUF", "truncated"),
    "2**32 keys": (container(keys=2**32), "4294967296 metadata keys"),
    "2**63 tensors": (container(tensors=2**63), "tensors"),
    "one key too many": (container(keys=1), "key"),
    "key longer than the file": (container(struct.pack("<Q", 2**40), keys=1), "metadata key"),
    "key that is no text": (container(string(b"\xff\xfe"), keys=1), "UTF-8"),
    "key twice": (container(*[entry("k", U32, bytes(4))] * 2, keys=2), "'k' twice"),
    "string longer than the file": (container(entry("k", STRING, struct.pack("<Q", 2**62)), keys=1), "'k'"),
    "string of 2**64-1": (container(entry("k", STRING, struct.pack("<Q", 2**64 - 1)), keys=1), "'k'"),
    "string that is no text": (container(entry("k", STRING, string(b"\xff")), keys=1), "'k' is not UTF-8"),
    "unknown value type": (container(entry("k", 13, b""), keys=1), "'k' has the unknown value type 13"),
    "unknown array type": (container(entry("k", ARRAY, array(77, 1)), keys=1), "unknown value type 77"),
    "array of 2**62 numbers": (container(entry("k", ARRAY, array(U32, 2**62)), keys=1), "'k' claims"),
    "array of 2**61 strings": (container(entry("k", ARRAY, array(STRING, 2**61)), keys=1), "'k' claims"),
    "array of 2**61 arrays": (container(entry("k", ARRAY, array(ARRAY, 2**61)), keys=1), "'k' claims"),
    "array whose string runs out": (
        container(entry("k", ARRAY, array(STRING, 2, string("a"), struct.pack("<Q", 999))), keys=1),
        "'k' holds a string of 999 bytes",
    ),
    "arrays five deep": (container(entry("k", ARRAY, nested(5)), keys=1), "deeper"),
    "alignment 0": (container(entry("general.alignment", U32, struct.pack("<I", 0)), keys=1), "alignment is 0"),
    "alignment 3": (container(entry("general.alignment", U32, struct.pack("<I", 3)), keys=1), "alignment is 3"),
    "alignment 2**31": (container(entry("general.alignment", U32, struct.pack("<I", 2**31)), keys=1), "alignment is"),
    "alignment as text": (container(entry("general.alignment", STRING, string("32")), keys=1), "alignment is '32'"),
    "one part of several": (container(entry("split.count", 2, struct.pack("<H", 3)), keys=1), "llama-gguf-split"),
    "0 dimensions": (container(tensor(dims=()), tensors=1), "'t' has 0 dimensions"),
    "2**32-1 dimensions": (
        container(string("t"), struct.pack("<I", 2**32 - 1), tensors=1, data=64),
        "'t' has 4294967295 dimensions",
    ),
    "a dimension of 0": (container(tensor(dims=(32, 0)), tensors=1), "'t' has a dimension of size 0"),
    "a product of 2**128": (container(tensor(dims=(2**62, 2**62)), tensors=1), "past the end"),
    "rows that are no blocks": (
        container(tensor(dims=(33,), kind=2), tensors=1, data=64),
        "not a multiple of Q4_0's 32",
    ),
    "a type octavo lacks": (container(tensor(dims=(256,), kind=10), tensors=1, data=256), "'t' is stored as Q2_K"),
    "a type nobody knows": (container(tensor(kind=999), tensors=1, data=256), "unknown type 999"),
    "data that is missing": (container(tensor(), tensors=1, data=127), "'t' ends at byte"),
    "an offset beyond the file": (container(tensor(offset=2**40), tensors=1, data=128), "'t' ends at byte"),
    "an offset of 2**64-32": (container(tensor(offset=2**64 - 32), tensors=1, data=128), "'t' ends at byte"),
    "an offset between": (container(tensor(offset=8), tensors=1, data=256), "not aligned"),
    "the same name twice": (container(tensor(), tensor(offset=128), tensors=2, data=256), "'t' twice"),
    "two in one place": (container(tensor(), tensor("u"), tensors=2, data=256), "'t' and 'u' overlap"),
}


@pytest.mark.parametrize(("raw", "message"), BAD.values(), ids=BAD.keys())
def test_nonsense_is_refused_and_named(tmp_path: Path, raw: bytes, message: str) -> None:
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path, raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message in str(caught.value)
    assert "model.gguf" in str(caught.value)
    assert peak < 2**20, "nothing is allocated for a number that was not checked"


def test_four_levels_of_arrays_are_read(tmp_path: Path) -> None:
    file = opened(tmp_path, container(entry("k", ARRAY, nested(4)), keys=1))
    assert file.metadata["k"][0][0][0].tolist() == [5]


def test_strings_are_decoded_when_asked_for(tmp_path: Path) -> None:
    words = opened(tmp_path, container(entry("k", ARRAY, array(STRING, 2, string("a"), string(b"\xff"))), keys=1))
    assert words.metadata["k"][0] == "a"
    for read in (lambda: words.metadata["k"][1], lambda: list(words.metadata["k"])):
        with pytest.raises(CheckpointError, match="'k': holds a string that is not UTF-8"):
            read()


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.gguf: cannot be read"):
        GGUFFile(tmp_path / "absent.gguf")


def test_a_file_cut_short_while_it_is_read_is_an_error_not_a_crash(tmp_path: Path) -> None:
    file = GGUFFile(write_gguf(tmp_path / "model.gguf"))
    with file.path.open("r+b") as opened:
        opened.truncate(1000)
    with pytest.raises(CheckpointError, match=r"model\.gguf: was cut short while tensor 'output_norm.weight'"):
        file.raw("output_norm.weight")


def test_names_from_the_file_are_shortened_in_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path, container(entry("k" * 5000, 99, b""), keys=1))
    assert "'kkk" in str(caught.value)
    assert len(str(caught.value)) < 1000
