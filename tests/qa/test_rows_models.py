"""Bad inputs 73 to 75: model files that cannot be served end `octavo serve` with one clear line.

Every kind of nonsense in the formats themselves is tried in process (tests/fuzz, tests/checkpoint, tests/models);
here is what a person sees.
"""

from __future__ import annotations

import json
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from qa_server import PATIENCE, serve_command, started
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

pytestmark = pytest.mark.qa

CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 261, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
WEIGHTS = "model.safetensors"


def tensors() -> dict[str, Tensor]:
    shapes = {"model.embed_tokens": (261, 8), "model.norm": (8,), "lm_head": (261, 8)}
    layer = "model.layers.0."
    shapes |= {layer + name: (8,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {layer + f"self_attn.{part}_proj": (4 if part in "kv" else 8, 8) for part in "qkvo"}
    shapes |= {layer + f"mlp.{part}_proj": (12, 8) for part in ("gate", "up")}
    shapes |= {layer + "mlp.down_proj": (8, 12)}
    return {name + ".weight": torch.zeros(shape) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that could be served."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(), model / WEIGHTS)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(sorted(alphabet))}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer.save(str(model / "tokenizer.json"))
    return model


def refusal(model: Path) -> str:
    """The one line with which the server ends."""
    with started(serve_command(model, "--device", "cpu"), model.parent) as server:
        status = server.process.wait(PATIENCE)
        assert server.process.stdout is not None
        assert server.process.stdout.read() == "", "it said that it was ready"
        log = server.log.read_text()
    assert status == 1, log
    assert "Traceback" not in log
    lines = [line for line in log.splitlines() if line.startswith("octavo: ")]
    assert len(lines) == 1, log
    return lines[0]


def test_the_folder_itself_is_good(folder: Path) -> None:
    with started(serve_command(folder, "--device", "cpu"), folder.parent) as server:
        server.wait_ready()
        assert server.complete("x").status == 200
        assert server.stop(signal.SIGTERM) == 0


def header_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", raw)
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def changed(raw: bytes) -> bytes:
        header, data = header_of(raw)
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    return changed


def overlap(header: dict[str, Any]) -> None:
    header["lm_head.weight"]["data_offsets"] = header["model.embed_tokens.weight"]["data_offsets"]


def overflow(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["shape"] = [2**62, 2**62, 8]


def dtype(header: dict[str, Any]) -> None:
    header["model.norm.weight"] |= {"dtype": "I32"}


SAFETENSORS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "header of nothing": (lambda raw: bytes(8) + raw[8:], WEIGHTS),
    "header of 2**63": (lambda raw: struct.pack("<Q", 2**63) + raw[8:], WEIGHTS),
    "no JSON": (lambda raw: raw[:9] + b"]" + raw[10:], WEIGHTS),
    "overlap": (with_header(overlap), "lm_head.weight"),
    "overflow": (with_header(overflow), "model.norm.weight"),
    "another type": (with_header(dtype), "model.norm.weight"),
    "last byte": (lambda raw: raw[:-1], WEIGHTS),
    "half": (lambda raw: raw[: len(raw) // 2], WEIGHTS),
}


@pytest.mark.parametrize(("change", "named"), SAFETENSORS.values(), ids=SAFETENSORS.keys())
def test_row_73_safetensors(folder: Path, change: Callable[[bytes], bytes], named: str) -> None:
    file = folder / WEIGHTS
    file.write_bytes(change(file.read_bytes()))
    assert named in refusal(folder)


@pytest.mark.parametrize("wrong", ["missing", "extra", "shape"])
def test_row_73_tensors_that_do_not_fit_the_model(folder: Path, wrong: str) -> None:
    weights = tensors()
    name = "model.norm.weight"
    if wrong == "missing":
        del weights[name]
    elif wrong == "extra":
        name = "model.layers.7.input_layernorm.weight"
        weights[name] = torch.zeros(8)
    else:
        weights[name] = torch.zeros(9)
    save_file(weights, folder / WEIGHTS)
    assert name.removeprefix("model.") in refusal(folder)


CONFIGS: dict[str, dict[str, Any]] = {
    "vocabulary": {"vocab_size": 300},
    "heads": {"num_attention_heads": 3},
    "layers": {"num_hidden_layers": 10**9},
    "negative": {"hidden_size": -8},
    "code": {"auto_map": {"AutoModel": "model.Model"}},
    "epsilon": {"rms_norm_eps": float("nan")},
    "family": {"model_type": "unheard-of"},
    "text": {"hidden_size": "8"},
    "width": {"hidden_size": 2**40},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_row_74_configurations(folder: Path, changes: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    assert len(refusal(folder)) < 1000


GGUF: dict[str, Callable[[bytes], bytes]] = {
    "2**32 keys": lambda raw: raw[:16] + struct.pack("<Q", 2**32) + raw[24:],
    "2**32 tensors": lambda raw: raw[:8] + struct.pack("<Q", 2**32) + raw[16:],
    "key of 2**40 bytes": lambda raw: raw[:24] + struct.pack("<Q", 2**40) + raw[32:],
    "truncated": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "text": lambda raw: b"no model at all\n",
}


@pytest.mark.parametrize("change", GGUF.values(), ids=GGUF.keys())
def test_row_75_gguf(tiny_model: Path, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(change(tiny_model.read_bytes()))
    assert "broken.gguf" in refusal(file)
