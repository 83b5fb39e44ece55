"""Encoders against transformers on tiny random weights: the same hidden states, embeddings and scores."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from octavo.checkpoint import resolve
from octavo.config import EngineConfig
from octavo.execution.executor import InProcessExecutor
from octavo.plan import Row, SequenceSpec, StepPlan
from octavo.request import PoolingParams, SamplingParams
from octavo.vectors import floats

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 72,
    "max_position_embeddings": 80,
}
ENCODERS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SIZES),
    "bert-gelu-tanh": BertConfig(**SIZES, hidden_act="gelu_new", layer_norm_eps=1e-5),
    "roberta": RobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1),
    "xlm-roberta": XLMRobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1),
}
CLASSIFIERS: dict[str, PreTrainedConfig] = {
    "bert-one": BertConfig(**SIZES, num_labels=1),
    "bert-three": BertConfig(**SIZES, num_labels=3),
    "roberta-one": RobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1, num_labels=1),
}
TEXTS = [random.Random(length).choices(range(4, 99), k=length) for length in (1, 7, 64, 33)]


def save(config: PreTrainedConfig, kind: Any, folder: Path) -> PreTrainedModel:
    torch.manual_seed(11)
    model = kind.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # the usual tiny initial weights would hide mistakes
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() == 1 else 1.5 / parameter.shape[-1] ** 0.5
            parameter.add_(torch.randn_like(parameter) * spread)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, safe_serialization=True)
    return model


def pooled(folder: Path, texts: list[list[int]], params: PoolingParams, cut: int | None = None) -> list[Tensor]:
    """All texts in one step, through the whole workshop; or in pieces of `cut` tokens, a step each."""
    config = EngineConfig.of(model=str(folder), dtype="float32", num_gpu_blocks_override=64)
    executor = InProcessExecutor(config, resolve(config.model))
    try:
        return run(executor, texts, params, cut)
    finally:
        executor.close()


def run(
    executor: InProcessExecutor, texts: list[list[int]], params: PoolingParams, cut: int | None = None
) -> list[Tensor]:
    size = executor.capacity.block_size
    added, blocks, first = [], [], 0
    for number, text in enumerate(texts):
        added.append(SequenceSpec(number, text, len(text), SamplingParams(), 0, [], [], pooling=params))
        blocks.append(list(range(first, first + -(-len(text) // size))))
        first = blocks[-1][-1] + 1
    found: dict[int, bytes] = {}
    longest = max(map(len, texts))
    for step, begin in enumerate(range(0, longest, cut or longest)):
        pieces = [text[begin : begin + (cut or longest)] for text in texts]
        rows = [Row(number, begin, piece, 0, blocks[number]) for number, piece in enumerate(pieces) if piece]
        result = executor.submit(StepPlan(step, added if step == 0 else [], rows, [], [])).result()
        for row in result.rows:
            assert row.error is None
            assert row.pooled is not None
            assert row.sequence_id not in found
            found[row.sequence_id] = row.pooled
    executor.submit(StepPlan(99, [], [], [], list(range(len(texts)))))
    return [torch.tensor(floats(found[number])) for number in range(len(texts))]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_hidden_states_are_those_of_transformers(name: str, pooling: Any, tmp_path: Path) -> None:
    oracle = save(ENCODERS[name], AutoModel, tmp_path)
    found = pooled(tmp_path, TEXTS, PoolingParams(pooling=pooling, normalize=False))
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            hidden_TE = oracle(torch.tensor([text])).last_hidden_state[0]
        expected = {"mean": hidden_TE.mean(0), "cls": hidden_TE[0], "last": hidden_TE[-1]}[pooling]
        torch.testing.assert_close(vector, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_of_pairs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    config = CLASSIFIERS[name]
    oracle = save(config, AutoModelForSequenceClassification, tmp_path)
    second = 3
    found = pooled(tmp_path, TEXTS[1:], PoolingParams(task="classify", pooling="cls", second=second))
    for text, scores in zip(TEXTS[1:], found, strict=True):
        types = [int(place >= second and config.type_vocab_size > 1) for place in range(len(text))]
        with torch.no_grad():
            logits = oracle(torch.tensor([text]), token_type_ids=torch.tensor([types])).logits[0]
        expected = logits.sigmoid() if config.num_labels == 1 else logits.softmax(-1)
        torch.testing.assert_close(scores, expected, atol=2e-5, rtol=0)


def test_a_second_segment_makes_a_difference(tmp_path: Path) -> None:
    save(CLASSIFIERS["bert-one"], AutoModelForSequenceClassification, tmp_path)
    params = PoolingParams(task="classify", pooling="cls")
    (without,) = pooled(tmp_path, TEXTS[1:2], params)
    (with_one,) = pooled(tmp_path, TEXTS[1:2], msgspec.structs.replace(params, second=3))
    assert (without - with_one).abs() > 1e-4


def test_a_cross_encoder_may_leave_its_scores_as_they_are(tmp_path: Path) -> None:
    config = BertConfig(**SIZES, num_labels=1)
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    oracle = save(config, AutoModelForSequenceClassification, tmp_path)
    (score,) = pooled(tmp_path, TEXTS[1:2], PoolingParams(task="classify", pooling="cls"))
    with torch.no_grad():
        torch.testing.assert_close(score, oracle(torch.tensor(TEXTS[1:2])).logits[0], atol=2e-5, rtol=0)


def test_neighbours_in_the_batch_do_not_change_a_vector(tmp_path: Path) -> None:
    save(ENCODERS["bert"], AutoModel, tmp_path)
    params = PoolingParams(pooling="mean", normalize=True, dimensions=13)
    together = pooled(tmp_path, TEXTS, params)
    for text, vector in zip(TEXTS, together, strict=True):
        (alone,) = pooled(tmp_path, [text], params)
        torch.testing.assert_close(vector, alone, atol=1e-6, rtol=0)
        assert len(vector) == 13
        assert vector.norm() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_where_a_decoders_prompt_is_cut_does_not_show(pooling: Any, tmp_path: Path) -> None:
    config = LlamaConfig(**SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2})
    oracle = save(config, AutoModelForCausalLM, tmp_path)
    params = PoolingParams(pooling=pooling, normalize=True)
    whole, pieces = (pooled(tmp_path, TEXTS, params, cut) for cut in (None, 5))
    for text, one, other in zip(TEXTS, whole, pieces, strict=True):
        with torch.no_grad():
            hidden_TE = oracle.model(torch.tensor([text])).last_hidden_state[0]
        expected = {"mean": hidden_TE.mean(0), "cls": hidden_TE[0], "last": hidden_TE[-1]}[pooling]
        torch.testing.assert_close(one, expected / expected.norm(), atol=2e-5, rtol=0)
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)  # large products are not to the last bit


def test_a_decoder_that_was_saved_without_a_head_embeds(tmp_path: Path) -> None:
    config = LlamaConfig(**SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}, tie_word_embeddings=False)
    oracle = save(config, AutoModel, tmp_path)
    model = EngineConfig.of(model=str(tmp_path), dtype="float32", num_gpu_blocks_override=64)
    executor = InProcessExecutor(model, resolve(model.model))
    try:
        assert executor.capacity.ability.tasks == ("embed",)
        found = run(executor, TEXTS, PoolingParams(pooling="last", normalize=False))
    finally:
        executor.close()
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            expected = oracle(torch.tensor([text])).last_hidden_state[0, -1]
        torch.testing.assert_close(vector, expected, atol=2e-5, rtol=0)
