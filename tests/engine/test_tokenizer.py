"""Tokenizers against the libraries they must agree with: SentencePiece itself, transformers and `tokenizers`."""

from __future__ import annotations

import json
import logging
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from gguf_files import BYTES, LLAMA, TENSORS, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece_models import processor
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from octavo.checkpoint import Checkpoint, GGUFFile, embedded
from octavo.checkpoint.folder import open_path
from octavo.engine import gguf_tokenizer
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import CheckpointError, InvalidRequest

TEXTS = [
    "",
    " ",
    "Hello world",
    "  two spaces, three   here ",
    "line\n\nline\n\n\n\tindented\r\n",
    "I'm, you've, HE'LL, it's 1234567.89!",
    "😀 👩‍👩‍👧 🇫🇷 ☕️ emoji",
    "日本語のテキスト、漢字。 한국어 русский עברית العربية ไทย",
    "naïve café ﬁ ① x² ǅ",
    "def f(x):\n    return {'a': [x] * 2}  # ok",
    "\x00\x01\x7f\u0378\U000e0001",
    "<h1>a</h1> <b> <0x41> [multimodal]",
    "▁a▁▁b",
    " " * 70 + "x" + "\n" * 40 + "e" * 50,
]


@pytest.fixture(scope="session")
def smol(smollm2: Checkpoint) -> Tokenizer:
    return Tokenizer.from_checkpoint(smollm2)


@pytest.fixture(scope="session")
def gemma(gemma3: Checkpoint) -> Tokenizer:
    return Tokenizer.from_checkpoint(gemma3)


# --- GGUF, byte-level -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def smol_of_transformers(smollm2: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(smollm2.path.parent), gguf_file=smollm2.path.name)


@pytest.mark.filterwarnings("ignore")
def test_smollm2_equals_transformers(smol: Tokenizer, smol_of_transformers: Any) -> None:
    chat = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    for text in [*TEXTS, chat]:
        if any(letter.isnumeric() and not letter.isascii() for letter in text):
            continue  # transformers forgets that SmolLM sets every numeral apart
        ids = smol.encode(text)
        assert ids == smol_of_transformers(text)["input_ids"], text
        assert smol.decode(ids, False) == text
        assert smol.decode(ids) == smol_of_transformers.decode(ids, skip_special_tokens=True)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co"]), max_size=60))
def test_byte_level_loses_nothing(smol: Tokenizer, text: str) -> None:
    """Some bytes of control characters and of unassigned planes are not in this vocabulary."""
    assert smol.decode(smol.encode(text, False), False) == text


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 49151), max_size=30), skip=st.booleans())
def test_byte_level_decodes_any_ids_as_the_library_does(smol: Tokenizer, ids: list[int], skip: bool) -> None:
    assert smol.decode(ids, skip) == smol._backend.decode(ids, skip_special_tokens=skip)


def test_smollm2_facts(smol: Tokenizer) -> None:
    assert (smol.bos_token, smol.eos_token, smol.vocab_size) == ("<|im_start|>", "<|im_end|>", 49152)
    assert smol.eos_token_ids == [0, 2]  # <|endoftext|> ends a text, <|im_end|> a turn
    assert smol.special_ids == frozenset(range(17))
    assert smol.chat_template is not None
    assert smol.encode("<|im_end|>") == [2]
    assert [smol.token(2), smol.token(smol.encode(" the")[0])] == ["<|im_end|>", " the"]


def byte_level_gguf(path: Path, **metadata: Any) -> Path:
    """A byte-level vocabulary with one merge, two control tokens and a user-defined one."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|begin|>", "<|im_end|>", "<think>", *letters, "ab"]
    vocabulary = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 4] + [1] * 257,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
    }
    return write_gguf(path, metadata=LLAMA | vocabulary | metadata)


def load(path: Path) -> Tokenizer:
    return Tokenizer.from_checkpoint(open_path(path, "model", "auto"))


@pytest.mark.parametrize(
    ("pre", "keys", "begins"),
    [
        ("gpt-2", {}, False),
        ("llama-bpe", {}, True),  # without a word in the file, as its author meant
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, False),
        ("qwen2", {"tokenizer.ggml.add_bos_token": True}, True),
    ],
)
def test_the_beginning_token(tmp_path: Path, pre: str, keys: dict[str, Any], begins: bool) -> None:
    found = load(byte_level_gguf(tmp_path / "m.gguf", **{"tokenizer.ggml.pre": pre}, **keys))
    assert (found.encode("ab")[0] == 0) == begins
    assert found.encode("ab", add_special_tokens=False) == [259]


def test_the_end_token_is_added_where_the_file_says_so(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.add_eos_token": True}
    found = load(byte_level_gguf(tmp_path / "m.gguf", **keys))
    assert found.encode("ab") == [259, 1]


def test_control_and_user_defined_tokens(tmp_path: Path) -> None:
    found = load(byte_level_gguf(tmp_path / "m.gguf"))
    ids = found.encode("ab<think>ab<|im_end|>")
    assert ids == [259, 2, 259, 1]
    assert found.special_ids == {0, 1}
    assert found.decode(ids) == "ab<think>ab"
    assert found.eos_token_ids == [1], "known by its name"


def splits(pre: str, text: str) -> list[str]:
    """How a word splitter cuts, in plain text."""
    steps = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in gguf_tokenizer.SPLITTERS[pre].patterns
    ]
    return [part for part, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


TEXT = "I'M 12345 café's\n\n  x=(1)"


@pytest.mark.parametrize(
    ("pre", "parts"),
    [
        ("default", ["I", "'", "M", " 12345", " café", "'s", "\n\n ", " x", "=(", "1", ")"]),
        ("smollm", ["I", "'", "M", " ", "1", "2", "3", "4", "5", " café", "'s", "\n\n ", " x", "=(", "1", ")"]),
        ("llama-bpe", ["I", "'M", " ", "123", "45", " café", "'s", "\n\n", " ", " x", "=(", "1", ")"]),
        ("qwen2", ["I", "'M", " ", "1", "2", "3", "4", "5", " café", "'s", "\n\n", " ", " x", "=(", "1", ")"]),
        ("tekken", ["I", "'M", " ", "1", "2", "3", "4", "5", " café", "'s", "\n\n", " ", " x", "=(", "1", ")"]),
        ("gpt-4o", ["I'M", " ", "123", "45", " café's", "\n\n", " ", " x", "=(", "1", ")"]),
    ],
)
def test_splitters(pre: str, parts: list[str]) -> None:
    assert splits(pre, TEXT) == parts


@pytest.mark.parametrize(
    ("pre", "steps"), [("gpt-2", []), ("smollm", [pre_tokenizers.Digits(individual_digits=True)])], ids=str
)
def test_splitters_that_the_library_has_too(pre: str, steps: list[Any]) -> None:
    theirs = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in TEXTS:
        ours = [to_bytes.pre_tokenize_str(part)[0][0] for part in splits(pre, text)]
        assert ours == [part for part, _ in theirs.pre_tokenize_str(text)]


def test_tekken_knows_capitals() -> None:
    assert splits("tekken", "HelloWorld ABC") == ["Hello", "World", " ABC"]
    assert splits("qwen2", "HelloWorld ABC") == ["HelloWorld", " ABC"]


def test_an_unknown_splitter_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = load(byte_level_gguf(tmp_path / "m.gguf", **{"tokenizer.ggml.pre": "brand-new"}))
    assert "brand-new" in caplog.text
    assert found.encode("ab") == [259]


# --- GGUF, SentencePiece ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def gemma_of_sentencepiece(gemma3: Checkpoint) -> Any:
    vocabulary = gguf_tokenizer.Vocabulary(GGUFFile(gemma3.path))
    assert vocabulary.types is not None
    types = vocabulary.types.tolist()
    types[3] = 2  # <unk>, which the library wants to be of its own type
    # The library looks for user-defined pieces after it rewrote spaces.
    table = zip(vocabulary.tokens, types, strict=True)
    tokens = [token.replace(" ", "▁") if kind == 4 else token for token, kind in table]
    return processor(tokens, vocabulary.numbers("scores").tolist(), types, add_space_prefix=False)


def test_gemma_equals_sentencepiece(gemma: Tokenizer, gemma_of_sentencepiece: Any) -> None:
    rng = random.Random(0)
    normal = [token_id for token_id in range(494, 262144) if token_id not in gemma.special_ids]
    pieces = [gemma.token(rng.choice(normal)) for _ in range(4000)]
    joined = ["".join(pieces[start : start + 8]) for start in range(0, 4000, 8)]
    letters = "ab the  ing\n\t ▁eé😀漢字xyz012.,<>/h1"
    noise = ["".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(500)]
    for text in TEXTS + joined + noise:
        ids = gemma.encode(text, add_special_tokens=False)
        assert ids == gemma_of_sentencepiece.encode(text), text
        assert gemma.decode(ids) == gemma_of_sentencepiece.decode(ids)


def test_gemma_facts(gemma: Tokenizer) -> None:
    assert (gemma.bos_token, gemma.eos_token, gemma.vocab_size) == ("<bos>", "<eos>", 262144)
    assert gemma.eos_token_ids == [1, 106]  # <eos> and <end_of_turn>
    assert gemma.encode("Hi") == [2, *gemma.encode("Hi", add_special_tokens=False)]
    assert gemma.encode("<start_of_turn>user", add_special_tokens=False)[0] == 105
    assert gemma.chat_template is None
    assert gemma.token(248) == "\n"  # the byte token <0x0A>
    assert gemma.token(138) == "  "


def by_hand(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE in its plainest form: join the neighbours whose union scores best, the leftmost of equals."""
    symbols = list(text)
    while True:
        joined = [left + right for left, right in pairwise(symbols)]
        unions = [(-scores[union], place) for place, union in enumerate(joined) if union in scores]
        if not unions:
            return symbols
        _, place = min(unions)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


LETTERS = st.text("ab▁", min_size=1, max_size=5)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(LETTERS, min_size=1, max_size=14, unique=True),
    order=st.randoms(use_true_random=False),
    texts=st.lists(st.text("ab ", max_size=24), min_size=1, max_size=8),
    prefix=st.booleans(),
)
def test_any_scores_equal_sentencepiece(
    tmp_path: Path, pieces: list[str], order: random.Random, texts: list[str], prefix: bool
) -> None:
    """Scores that no training would give, on two letters: every way to tie and to overlap."""
    pieces = sorted({*pieces, "a", "b", "▁"})
    ranks = list(range(len(pieces)))
    order.shuffle(ranks)
    tokens = ["<unk>", *BYTES, *pieces]
    scores = [0.0] * 257 + [-float(rank) for rank in ranks]
    types = [2] + [6] * 256 + [1] * len(pieces)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    embedding = {"token_embd.weight": np.zeros((len(tokens), 64), np.float32)}
    ours = load(write_gguf(tmp_path / "m.gguf", metadata=LLAMA | metadata, tensors=TENSORS | embedding))
    theirs = processor(tokens, scores, types, add_space_prefix=prefix)
    table = dict(zip(pieces, scores[257:], strict=True))
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids) == text
        spelled = text.replace(" ", "▁")
        assert [tokens[place] for place in ids] == by_hand("▁" + spelled if prefix and text else spelled, table)


def test_a_byte_that_is_no_utf8_spoils_only_itself(gemma: Tokenizer) -> None:
    e_acute = [238 + byte for byte in "é".encode()]
    assert gemma.decode([*e_acute, 238 + 0xFF, *e_acute]) == "é\ufffdé"
    assert gemma.decode(e_acute[:1]) == "\ufffd"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, "kind 't5'.*--tokenizer"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "a token twice"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "token_type does not hold one number per token"),
        ({"tokenizer.ggml.merges": ["a q!"]}, "does not make sense"),
        ({"tokenizer.ggml.merges": ["nospace"]}, "does not make sense"),
    ],
)
def test_a_vocabulary_that_makes_no_sense(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(byte_level_gguf(tmp_path / "m.gguf", **keys))


def test_a_gguf_without_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer; name one with --tokenizer"):
        load(write_gguf(tmp_path / "m.gguf"))


# --- tokenizer.json ---------------------------------------------------------------------------------------------------


def test_the_tokenizer_of_one_of_octavos_own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = byte_level_gguf(tmp_path / "own.gguf")
    fetched: list[str] = []

    def fetch(model: embedded.EmbeddedModel) -> Path:
        fetched.append(model.name)
        return path

    monkeypatch.setattr(embedded, "fetch", fetch)
    bare = Checkpoint(name="bare", path=tmp_path, format="dummy", config={})
    own = Tokenizer.from_checkpoint(bare, "smollm2-135m-instruct")
    assert fetched == ["SmolLM2-135M-Instruct"]
    assert own.encode("Hello") == Tokenizer.from_checkpoint(open_path(path, "own", "auto")).encode("Hello")


def small_backend() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    backend.train_from_iterator(["hello hello world"], trainer)
    return backend


def folder(path: Path, backend: Backend, **files: Any) -> Checkpoint:
    path.mkdir(exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return Checkpoint(name="m", path=path, format="safetensors", config={"model_type": "llama"})


def test_a_folder(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "T"}
    checkpoint = folder(tmp_path, small_backend(), tokenizer_config=config)
    found = Tokenizer.from_checkpoint(checkpoint)
    assert (found.bos_token, found.eos_token, found.eos_token_ids) == ("<s>", "</s>", [1])
    assert found.chat_template == "T"
    ids = found.encode("hello wörld</s>")
    assert ids == small_backend().encode("hello wörld</s>").ids
    assert (found.decode(ids), found.decode(ids, False)) == ("hello wörld", "hello wörld</s>")


def test_end_tokens_come_from_everywhere(tmp_path: Path) -> None:
    folder(tmp_path, small_backend(), special_tokens_map={"eos_token": "</s>"})
    checkpoint = Checkpoint(
        name="m",
        path=tmp_path,
        format="safetensors",
        config={"model_type": "llama", "eos_token_id": 7},
        generation_config={"eos_token_id": [9, 7]},
    )
    assert Tokenizer.from_checkpoint(checkpoint).eos_token_ids == [1, 7, 9]


def test_an_answer_of_gpt_oss_goes_on_after_a_message_of_it(tmp_path: Path) -> None:
    """Its messages end with <|end|>, also where the file calls that the end of a turn."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    for last, ends in (("<|call|>", [1, 2]), ("<|other|>", [0, 1])):
        changes = {
            "tokenizer.ggml.tokens": ["<|end|>", "<|return|>", last, *letters, "ab"],
            "tokenizer.ggml.token_type": [3, 3, 3] + [1] * 257,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.eot_token_id": 0,
        }
        assert load(byte_level_gguf(tmp_path / "m.gguf", **changes)).eos_token_ids == ends


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path) -> None:
    backend = small_backend()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    found = Tokenizer.from_checkpoint(folder(tmp_path, backend))
    assert found.decode(found.encode("hello world, hello")) == "hello world, hello"


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("one", "one"),
        ([{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}], "a"),
        ([{"name": "rag", "template": "c"}], "c"),
        (None, None),
        (3, None),
    ],
)
def test_chat_templates_of_the_config(tmp_path: Path, template: Any, wanted: str | None) -> None:
    checkpoint = folder(tmp_path, small_backend(), tokenizer_config={"chat_template": template})
    assert Tokenizer.from_checkpoint(checkpoint).chat_template == wanted
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert Tokenizer.from_checkpoint(checkpoint).chat_template == "from the file"


def test_tokens_that_only_the_config_knows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = small_backend()
    size = backend.get_vocab_size()
    listed = {
        str(size): {"content": "<new>", "special": True},
        "0": {"content": "<s>", "special": True},
        str(size + 5): {"content": "<astray>", "special": False},
    }
    found = Tokenizer.from_checkpoint(folder(tmp_path, backend, tokenizer_config={"added_tokens_decoder": listed}))
    assert found.encode("<new>") == [size]
    assert size in found.special_ids
    assert str(size + 5) in caplog.text


def test_another_tokenizer_can_be_named(tmp_path: Path, smollm2: Checkpoint) -> None:
    folder(tmp_path, small_backend())
    for typed in (tmp_path, tmp_path / "tokenizer.json"):
        assert Tokenizer.from_checkpoint(smollm2, str(typed)).vocab_size == small_backend().get_vocab_size()
    with pytest.raises(CheckpointError, match="no such folder"):
        Tokenizer.from_checkpoint(smollm2, str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, "", "has no tokenizer.json"),
        ("tokenizer.model", "", "only tokenizer.model"),
        ("tokenizer.json", "{", "not a tokenizer the library can read"),
        ("tokenizer.json", "[]", "not a tokenizer the library can read"),
    ],
)
def test_folders_without_a_tokenizer(tmp_path: Path, name: str | None, content: str, message: str) -> None:
    if name is not None:
        (tmp_path / name).write_text(content)
    checkpoint = Checkpoint(name="m", path=tmp_path, format="safetensors", config={"model_type": "llama"})
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_checkpoint(checkpoint)


def test_a_decoder_nobody_knows_is_refused(tmp_path: Path) -> None:
    backend = small_backend()
    backend.decoder = decoders.CTC()
    with pytest.raises(CheckpointError, match="decodes by CTC"):
        Tokenizer.from_checkpoint(folder(tmp_path, backend))


def byte_fallback(*more: Any) -> Any:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more])


WORDS = ["▁", "▁a", "é", "<0x41>", "<0x20>", "<unk>", "c"]


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        (byte_fallback(), [*WORDS, "b▁", "▁▁"]),
        (byte_fallback(decoders.Strip(" ", 1, 0)), [*WORDS, "b▁", "▁▁"]),
        (decoders.Metaspace(), WORDS),  # takes every mark away from a first word
        (decoders.Metaspace(prepend_scheme="never"), [*WORDS, "b▁", "▁▁"]),
    ],
    ids=["gemma", "llama 2", "metaspace", "metaspace without prefix"],
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, 10), max_size=12), skip=st.booleans())
def test_other_decoders_do_what_the_library_does(
    tmp_path: Path, decoder: Any, words: list[str], ids: list[int], skip: bool
) -> None:
    """Without single bytes above 127: there the library gives up whole runs."""
    backend = Backend(models.BPE({word: place for place, word in enumerate(words)}, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoder
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    backend.add_tokens([AddedToken("▁x", special=False)])
    found = Tokenizer.from_checkpoint(folder(tmp_path, backend))
    assert found.decode(ids, skip) == backend.decode(ids, skip_special_tokens=skip)


# --- callers' mistakes ------------------------------------------------------------------------------------------------


def test_half_a_surrogate_pair_is_the_callers_mistake(smol: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        smol.encode("a\ud800b")


def test_ids_beyond_the_vocabulary_have_no_text(smol: Tokenizer) -> None:
    assert smol.decode([10**9, 2**31, *smol.encode("ok")]) == "ok"
    assert smol.token(49152) == ""
    assert smol.token(-1) == ""


def test_the_version_of_the_library_describes_its_decoders() -> None:
    """Decoding rests on this description."""
    assert json.loads(decoders.ByteLevel().__getstate__())["type"] == "ByteLevel", tokenizers.__version__
