"""A BERT in a GGUF file, named as llama.cpp's converter names it, against the checkpoint that it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from safetensors.torch import load_file
from test_encoders import ENCODERS, TEXTS, pooled, save
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel

from octavo.checkpoint import resolve
from octavo.checkpoint.checkpoint import SentencePooling
from octavo.config import ModelConfig
from octavo.engine.tokenizer import Tokenizer
from octavo.request import PoolingParams

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["bread", "##s", "dough", "stra", "##ße", "##sse", "cafe", "?", ".", "東", "b", "##r", "[unused1]"]
SPELLED = [word.removeprefix("##") if word.startswith("##") else f"▁{word}" for word in WORDS]
PIECES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
EMBEDDINGS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in EMBEDDINGS:
        return f"{EMBEDDINGS[stem]}.{kind}"
    _, _, layer, piece = stem.split(".", 3)
    return f"blk.{layer}.{PIECES[piece]}.{kind}"


def metadata(**more: Any) -> dict[str, Any]:
    count = ENCODERS["bert"].vocab_size - len(SPECIAL) - len(SPELLED)
    tokens = [*SPECIAL, *SPELLED, *(f"▁filler{number}" for number in range(count))]
    return {
        "bert.block_count": 3,
        "bert.context_length": 80,
        "bert.embedding_length": 40,
        "bert.feed_forward_length": 72,
        "bert.attention.head_count": 5,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": 1,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        **more,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    save(ENCODERS["bert"], AutoModel, folder)
    tensors = {
        gguf_name(name): tensor.numpy()
        for name, tensor in load_file(folder / "model.safetensors").items()
        if not name.startswith("pooler.")
    }
    (folder / "gguf").mkdir()
    write_gguf(folder / "gguf" / "m.gguf", "bert", metadata(), tensors)
    return folder


def test_vectors_are_those_of_the_safetensors(folder: Path) -> None:
    params = PoolingParams(pooling="mean", normalize=True)
    for ours, expected in zip(
        pooled(folder / "gguf" / "m.gguf", TEXTS, params), pooled(folder, TEXTS, params), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_the_file_says_how_to_pool(folder: Path, tmp_path: Path) -> None:
    found = resolve(ModelConfig(model=str(folder / "gguf" / "m.gguf")))
    assert found.pooling == SentencePooling(pooling="mean")
    embedding = {"token_embd.weight": np.zeros((99, 40), np.float32)}
    for kind, pooling in ((2, "cls"), (3, "last"), (0, None), (4, None)):
        path = write_gguf(
            tmp_path / f"{kind}.gguf",
            "bert",
            metadata(**{"bert.pooling_type": kind}),
            embedding | {f"blk.{layer}.attn_q.weight": np.zeros((40, 40), np.float32) for layer in range(3)},
        )
        assert resolve(ModelConfig(model=str(path))).pooling.pooling == pooling


@pytest.mark.parametrize("text", ["", "Bread!", "Breads? Dough. Café", "straße brrr", "東京 [SEP] bread", "bread" * 50])
def test_texts_are_cut_as_berts_own_tokenizer_cuts_them(folder: Path, text: str) -> None:
    ours = Tokenizer.from_checkpoint(resolve(ModelConfig(model=str(folder / "gguf" / "m.gguf"))))
    theirs = Backend(WordPiece({word: place for place, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    theirs.normalizer, theirs.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    theirs.add_special_tokens(SPECIAL)
    theirs.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    assert ours.encode(text) == theirs.encode(text).ids
    pair = theirs.encode(text, "dough bread?")
    assert ours.encode_to_pool(text, "dough bread?") == (pair.ids, pair.type_ids.index(1))


def test_words_come_back_with_spaces(folder: Path) -> None:
    tokenizer = Tokenizer.from_checkpoint(resolve(ModelConfig(model=str(folder / "gguf" / "m.gguf"))))
    assert tokenizer.decode(tokenizer.encode("Breads dough")) == "breads dough"
