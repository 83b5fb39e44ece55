"""Model files from strangers: read whole, or refused with a CheckpointError that names the file."""

from __future__ import annotations

import json
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf_bytes import ARRAY, STRING, U32, array, container, entry, string, tensor
from gguf_files import BYTES, LLAMA, write_gguf
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save
from target import INTERESTING, Target, mutated

from octavo.checkpoint import Checkpoint
from octavo.checkpoint.checkpoint import read_config, read_json
from octavo.checkpoint.folder import open_path
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import CheckpointError
from octavo.models.registry import build
from octavo.models.weights.sources import open_source

_MOST_BYTES = 64 << 20  # of memory for files of some kilobytes
_MOST_SECONDS = 5.0


@contextmanager
def refused_or_read(named: str) -> Iterator[None]:
    """What happens inside ends well or with an error that names the file, and takes neither memory nor time."""
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    tracemalloc.reset_peak()
    before, began = tracemalloc.get_traced_memory()[0], time.thread_time()
    message = named
    try:
        yield
    except CheckpointError as error:
        message = error.message
    finally:
        peak = tracemalloc.get_traced_memory()[1] - before
        if not tracing:
            tracemalloc.stop()
    assert named in message, message
    assert len(message) < 2000, message[:3000]
    assert peak < _MOST_BYTES, f"{peak >> 20} MiB"
    assert time.thread_time() - began < _MOST_SECONDS


def in_folder(file: str, read: Callable[[Path], None]) -> Callable[[bytes], None]:
    """A check of the bytes as a file of this name in a folder of its own."""

    def check(data: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            path = Path(folder) / file
            path.write_bytes(data)
            with refused_or_read(file):
                read(path)

    return check


# ---------------------------------------------------------------------- GGUF


@cache
def whole_gguf() -> bytes:
    """A file with everything a model needs, tensors of plain and of quantized types."""
    random = np.random.default_rng(0)
    tokens = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "ab", "▁ab"]
    metadata: dict[str, Any] = LLAMA | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-3.0, -4.0, -5.0, -1.0, -2.0],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 5,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }
    shapes = {
        "token_embd": (len(tokens), 64), "output_norm": (64,), "blk.0.attn_norm": (64,), "blk.0.ffn_norm": (64,),
        "blk.0.attn_q": (64, 64), "blk.0.attn_k": (32, 64), "blk.0.attn_v": (32, 64), "blk.0.attn_output": (64, 64),
        "blk.0.ffn_gate": (96, 64), "blk.0.ffn_up": (96, 64), "blk.0.ffn_down": (64, 96),
    }  # fmt: skip
    tensors = {f"{name}.weight": random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    kinds = dict(zip(tensors, ("F16", None, None, None, "Q4_0", "Q8_0", "BF16"), strict=False))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.gguf"
        stored = {name: kind for name, kind in kinds.items() if kind is not None}
        write_gguf(path, metadata=metadata, tensors=tensors, types=stored)
        return path.read_bytes()


def read_gguf(path: Path) -> None:
    """As a server does when it starts: configuration, tokenizer, the outline of the model, every weight."""
    checkpoint = open_path(path, "model", "auto")
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    tokenizer.decode(tokenizer.encode("ab a🙂"))
    with naming(path):
        build(checkpoint.config, torch.float32, torch.device("meta"))
    for _, weight in open_source(checkpoint):
        assert isinstance(weight, torch.Tensor)
        weight.sum()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """The registry sees a configuration, not the file it came from."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}") from None


def _keys() -> SearchStrategy[bytes]:
    name = st.sampled_from(["general.alignment", "split.count", "general.architecture", "llama.block_count", "k", ""])
    number = st.sampled_from(INTERESTING)
    values = st.recursive(
        st.one_of(
            number.map(lambda value: (U32, struct.pack("<I", value % 2**32))),
            number.map(lambda value: (10, struct.pack("<Q", value))),
            st.binary(max_size=8).map(lambda raw: (STRING, string(raw))),
            number.map(lambda length: (STRING, struct.pack("<Q", length))),
            st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=16)),
        ),
        lambda inner: st.builds(
            lambda item, count: (ARRAY, array(item[0], count, item[1])), inner, st.sampled_from((0, 1, 2, *INTERESTING))
        ),
        max_leaves=8,
    )
    return st.builds(lambda key, value: entry(key, *value), name, values)


def _tensors() -> SearchStrategy[bytes]:
    size = st.sampled_from((32, 64, 256, *INTERESTING))
    dims = st.lists(size, max_size=5).map(tuple)
    kinds = st.sampled_from((0, 1, 2, 3, 8, 12, 14, 30, 10, 4, 31, 2**31))
    return st.builds(tensor, st.sampled_from(("t", "u", "token_embd.weight")), dims, kinds, size)


def _containers() -> SearchStrategy[bytes]:
    def build_container(keys: list[bytes], tensors: list[bytes], more: int, data: int) -> bytes:
        return container(*keys, *tensors, keys=len(keys) + more, tensors=len(tensors), data=data)

    more = st.sampled_from((0, 0, 0, 1, 2**32, 2**63))
    return st.builds(
        build_container, st.lists(_keys(), max_size=4), st.lists(_tensors(), max_size=3), more, st.integers(0, 2048)
    )


# ---------------------------------------------------------------------- safetensors

WEIGHTS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.tensor(7.0, dtype=torch.float16),
}


def read_safetensors(path: Path) -> None:
    checkpoint = Checkpoint(name="m", path=path.parent, format="safetensors", config={"model_type": "llama"})
    for _, weight in open_source(checkpoint):
        assert isinstance(weight, torch.Tensor)
        weight.sum()


def _headers() -> SearchStrategy[bytes]:
    number = st.sampled_from((4, 8, 16, -1, *INTERESTING))
    entries = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "BF16", "I64", "BOOL", "F4", "", 3, None]),
            "shape": st.lists(number, max_size=4) | st.sampled_from([None, 4, "4", [1.5], [[2]]]),
            "data_offsets": st.lists(number, min_size=2, max_size=2) | st.sampled_from([None, [], [0], [0, 8, 8], "0"]),
            "more": st.none(),
        },
    )
    header: SearchStrategy[Any] = st.dictionaries(
        st.sampled_from(["t", "u", "__metadata__", ""]), entries | st.sampled_from([None, 3, []])
    )

    def file(header: Any, data: int, off: int) -> bytes:
        raw = json.dumps(header).encode()
        return struct.pack("<Q", max(0, len(raw) + off)) + raw + bytes(data)

    return st.builds(file, header, st.sampled_from((0, 7, 8, 16)), st.sampled_from((0, 0, 0, 1, -1, 2**62)))


def read_index(path: Path) -> None:
    """An index beside good shards."""
    for place, (name, values) in enumerate(WEIGHTS.items(), 1):
        (path.parent / f"model-0000{place}-of-00003.safetensors").write_bytes(save({name: values}))
    with naming(path):  # it may be a shard that is named instead
        read_safetensors(path)


_INDEX = json.dumps(
    {"metadata": {}, "weight_map": {name: f"model-0000{n}-of-00003.safetensors" for n, name in enumerate(WEIGHTS, 1)}}
).encode()

# ---------------------------------------------------------------------- config.json

CONFIGS: list[dict[str, Any]] = [
    {"model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
     "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
     "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16},
     "tie_word_embeddings": False, "hidden_act": "silu", "head_dim": 4},
    {"model_type": "gemma3_text", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
     "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32, "head_dim": 4,
     "sliding_window": 4, "query_pre_attn_scalar": 4},
    {"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 32},
]  # fmt: skip
_ODD: SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.sampled_from((*INTERESTING, -1, 10**30, 0.5, -0.0, 1e308)), st.text(max_size=4),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.sampled_from(["type", "factor", "rope_type", "sliding_attention"]), st.text() | st.floats()),
)  # fmt: skip


def read_configuration(path: Path) -> None:
    config = read_config(path)
    read_json(path)
    with naming(path):
        build(config, torch.float32, torch.device("meta"))


def _configs() -> SearchStrategy[bytes]:
    def changed(config: dict[str, Any]) -> SearchStrategy[bytes]:
        names = st.sampled_from([*config, "rope_parameters", "rope_theta", "layer_types", "architectures", "auto_map"])
        return st.dictionaries(names, _ODD, min_size=1, max_size=3).map(
            lambda changes: json.dumps(config | changes).encode()
        )

    return st.sampled_from(CONFIGS).flatmap(changed)


TARGETS = [
    Target("gguf", mutated([whole_gguf()]) | _containers(), in_folder("model.gguf", read_gguf)),
    Target("safetensors", mutated([save(WEIGHTS)]) | _headers(), in_folder("model.safetensors", read_safetensors)),
    Target("index", mutated([_INDEX]), in_folder("model.safetensors.index.json", read_index)),
    Target(
        "config",
        mutated([json.dumps(config).encode() for config in CONFIGS]) | _configs(),
        in_folder("config.json", read_configuration),
    ),
]
