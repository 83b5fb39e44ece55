"""The real embedding model against transformers: what `LLM` and a decoder's prefix cache make of texts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoTokenizer, BertModel

from octavo.checkpoint import Checkpoint
from octavo.engine.llm import LLM
from octavo.errors import ContextTooLong, InvalidRequest
from octavo.request import PoolingParams

TEXTS = [
    "A cat sits on the mat.",
    "Naïve café — 東京 42!",
    "x",
    "The quick brown fox jumps over the lazy dog. " * 20,
    "How do I bake bread?",
    "Knead the dough, let it rise, then put it in the oven.",
    "The stock market fell today.",
]


@pytest.fixture(scope="module")
def llm(minilm: Checkpoint) -> Iterator[LLM]:
    llm = LLM("all-MiniLM-L6-v2", dtype="float32", kv_cache_memory=64 * 2**20)
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def expected(minilm: Checkpoint) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(minilm.path)
    model = BertModel.from_pretrained(minilm.path, dtype=torch.float32).eval()
    rows = []
    for text in TEXTS:
        with torch.inference_mode():
            hidden_TE = model(**tokenizer(text, return_tensors="pt", padding=False)).last_hidden_state[0]
        rows.append(torch.nn.functional.normalize(hidden_TE.mean(0), dim=0))
    return torch.stack(rows)


def test_vectors_are_those_of_transformers(llm: LLM, expected: torch.Tensor) -> None:
    found = torch.tensor([output.outputs.embedding for output in llm.embed(TEXTS, use_tqdm=False)])
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999999
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_in_16_bits_they_are_close(minilm: Checkpoint, expected: torch.Tensor) -> None:
    llm = LLM("all-MiniLM-L6-v2", dtype="bfloat16", kv_cache_memory=64 * 2**20)
    found = torch.tensor([output.outputs.embedding for output in llm.embed(TEXTS, use_tqdm=False)])
    llm.close()
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999


def test_scores_are_cosines(llm: LLM, expected: torch.Tensor) -> None:
    found = [output.outputs.score for output in llm.score(TEXTS[4], TEXTS[5:], use_tqdm=False)]
    assert found == pytest.approx((expected[5:] @ expected[4]).tolist(), abs=1e-5)
    assert found[0] > found[1] + 0.2


def test_fewer_dimensions_are_cut_and_brought_to_length_one(llm: LLM, expected: torch.Tensor) -> None:
    (output,) = llm.embed(TEXTS[0], pooling_params=PoolingParams(dimensions=100), use_tqdm=False)
    cut = expected[0, :100] / expected[0, :100].norm()
    torch.testing.assert_close(torch.tensor(output.outputs.embedding), cut, atol=1e-5, rtol=0)


def test_the_longest_text_fits_and_one_token_more_does_not(llm: LLM) -> None:
    (output,) = llm.embed("a " * 254, use_tqdm=False)
    assert len(output.prompt_token_ids) == 256
    with pytest.raises(ContextTooLong, match="256 tokens; the prompt has 257"):
        llm.embed("a " * 255, use_tqdm=False)


def test_what_it_cannot_do_it_says(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="generates no text"):
        llm.generate("x", use_tqdm=False)
    with pytest.raises(InvalidRequest, match="no classifier"):
        llm.classify("x", use_tqdm=False)


def test_a_decoder_embeds_from_its_prefix_cache_where_the_last_token_is_enough(smollm2: Checkpoint) -> None:
    llm = LLM(dtype="float32", kv_cache_memory=64 * 2**20, max_model_len=512)
    text = "Prefixes are found again where they are long enough, as this one is, of more than two whole blocks. " * 3
    try:
        for pooling in ("last", "mean"):
            first, again = (llm.encode(text, PoolingParams(pooling=pooling), use_tqdm=False)[0] for _ in range(2))
            assert bool(again.num_cached_tokens) == (pooling == "last")
            assert first.outputs.embedding == pytest.approx(again.outputs.embedding, abs=1e-4)
    finally:
        llm.close()
