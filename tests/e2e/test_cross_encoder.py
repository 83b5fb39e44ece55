"""A tiny cross-encoder with a tokenizer of its own, against transformers: pairs, truncation, a core that dies."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast

from octavo.config import EngineConfig
from octavo.engine.async_engine import AsyncLLMEngine
from octavo.engine.llm import LLM
from octavo.errors import ConfigError, ContextTooLong, InvalidRequest
from octavo.request import PoolingParams
from octavo.vectors import floats

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "bread", "dough", "stock", "fell", "how", "bake", "##s", "?", "."]
QUERY, DOCUMENTS = "How bake bread?", ["Dough.", "Stocks fell. " * 4, "bread", "Stock bake fell?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross")
    backend = Tokenizer(WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.save(str(folder / "tokenizer.json"))
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(WORDS), intermediate_size=48, max_position_embeddings=40, num_labels=1, **sizes)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[float]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    scores = []
    for document in DOCUMENTS:
        encoding = tokenizer(QUERY, document, return_tensors="pt", return_token_type_ids=True)
        assert encoding["token_type_ids"].any()
        with torch.inference_mode():
            scores.append(model(**encoding).logits.sigmoid().item())
    return scores


def test_scores_of_texts_are_those_of_transformers(folder: Path, expected: list[float]) -> None:
    llm = LLM(str(folder), dtype="float32", num_gpu_blocks_override=64)
    try:
        found = [output.outputs.score for output in llm.score(QUERY, DOCUMENTS, use_tqdm=False)]
        assert found == pytest.approx(expected, abs=1e-5)
        assert len({round(score, 3) for score in found}) == len(found), "texts make a difference"
        assert llm.classify(DOCUMENTS[0], use_tqdm=False)[0].outputs.probs != pytest.approx([found[0]], abs=1e-3)
        with pytest.raises(InvalidRequest, match="makes no embeddings; use /v1/rerank or /v1/score"):
            llm.embed("bread", use_tqdm=False)
        with pytest.raises(ContextTooLong):
            llm.score(QUERY, "bread " * 40, use_tqdm=False)
    finally:
        llm.close()


def test_texts_are_cut_behind_and_pairs_in_the_second_text(folder: Path, expected: list[float]) -> None:
    async def cut() -> list[Any]:
        engine = await AsyncLLMEngine.start(EngineConfig.of(model=str(folder), num_gpu_blocks_override=64))
        try:
            await engine.wait_ready()
            return [
                await engine.encode_to_pool("bread " * 9, truncate=5),
                await engine.encode_to_pool((QUERY, "dough fell stock"), truncate=9),
                await engine.encode_to_pool((QUERY, "dough " * 99), truncate=-1),
                await engine.encode_to_pool([4, 5, 6], truncate=2),
            ]
        finally:
            await engine.shutdown()

    one, pair, longest, ids = asyncio.run(cut())
    assert one == ([2, 4, 4, 4, 3], None)
    assert pair == ([2, 8, 9, 4, 11, 3, 5, 7, 3], 6)
    assert (len(longest[0]), longest[1]) == (40, 6)
    assert ids == ([4, 5], None)


@pytest.mark.parametrize(
    ("flags", "longest"),
    [({}, 16), ({"max_model_len": 9}, 9), ({"max_model_len": 30}, 30), ({"max_num_batched_tokens": 12}, 12)],
)
def test_texts_are_as_long_as_advised_unless_others_are_asked_for(
    folder: Path, tmp_path: Path, flags: dict[str, int], longest: int
) -> None:
    shutil.copytree(folder, tmp_path / "advised")
    (tmp_path / "advised" / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    llm = LLM(str(tmp_path / "advised"), num_gpu_blocks_override=64, **flags)
    assert llm.llm_engine.max_model_len == longest
    llm.close()


@pytest.mark.parametrize("flags", [{"max_model_len": 41}, {"max_model_len": 30, "max_num_batched_tokens": 29}])
def test_lengths_that_cannot_be_are_refused(folder: Path, flags: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="max-model-len"):
        LLM(str(folder), num_gpu_blocks_override=64, **flags)


def test_no_vector_is_lost_when_the_core_dies(folder: Path) -> None:
    """Killed between answers, again and again; every text gets the one that it gets alone."""
    texts = [[4 + (number * place) % 9 for place in range(1, 2 + number % 30)] for number in range(60)]

    async def run(kills: int) -> list[list[float]]:
        config = EngineConfig.of(model=str(folder), dtype="float32", num_gpu_blocks_override=64, max_num_seqs=2)
        engine = await AsyncLLMEngine.start(config)
        done = 0

        async def one(number: int) -> list[float]:
            nonlocal done
            params = PoolingParams(task="classify")
            (output,) = [each async for each in engine.generate(texts[number], params, str(number))]
            done += 1
            if done in range(10, 10 * kills + 1, 10):
                os.kill(the_core(), signal.SIGKILL)
            assert output.pooled is not None
            return floats(output.pooled)

        try:
            found = await asyncio.gather(*(one(number) for number in range(len(texts))))
            assert (engine.metrics.total("core_restarts") > 0) == (kills > 0)
            return found
        finally:
            await engine.shutdown()

    undisturbed, disturbed = asyncio.run(run(0)), asyncio.run(run(2))
    assert disturbed == [pytest.approx(scores, abs=1e-6) for scores in undisturbed]


def the_core() -> int:
    (child,) = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return int(child)
