"""The tokenizer inside a GGUF file, rebuilt for the `tokenizers` library.

GGUF keeps a vocabulary, token types, merges or scores, and the *name* of a way to split text into words; what the name
means is data here. Three kinds exist for the families octavo serves: byte-level BPE ("gpt2"), SentencePiece BPE
("llama") and WordPiece ("bert"). Knows nothing of chat templates or of decoding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from octavo.checkpoint import GGUFFile, StringArray
from octavo.errors import CheckpointError

logger = logging.getLogger(__name__)

_SPACE = "▁"  # how SentencePiece writes a space


# tokenizer.ggml.token_type; 5 is unused, 6 a byte
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4

_SEPARATORS = ("seperator", "separator", "eos")  # the first is how GGUF spells it

_LONGEST_PIECE = 256  # characters; SentencePiece trains with 16, and every cut of a piece is looked at


class Splitter(NamedTuple):
    """How text is cut before byte-pair merging: by each pattern in turn."""

    patterns: tuple[str, ...]
    add_bos: bool = False  # unless the file says otherwise
    ignore_merges: bool = False  # a word that is in the vocabulary is taken whole


# The patterns are those of the tokenizers' own tokenizer.json files, named as in tokenizer.ggml.pre.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASH_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = Splitter((r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",))
_DIGITS_APART = Splitter((r"\p{N}", *_GPT2.patterns))
_LLAMA3 = Splitter(
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}",),
    add_bos=True,
    ignore_merges=True,
)
_QWEN2 = Splitter((rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION_AND_SPACE}",))
_TEKKEN = Splitter(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        rf"|\p{{N}}|{_SLASH_AND_SPACE}",
    ),
    add_bos=True,
    ignore_merges=True,
)
_GPT4O = Splitter(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
        rf"|\p{{N}}{{1,3}}|{_SLASH_AND_SPACE}",
    ),
)
_DEEPSEEK_CODER = Splitter((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"))

SPLITTERS: dict[str, Splitter] = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "roberta-bpe"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_APART),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "midm-2.0"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _LLAMA3._replace(add_bos=False, ignore_merges=False)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"), _QWEN2),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "deepseek-coder": _DEEPSEEK_CODER,
}


class Vocabulary:
    """The token table of a GGUF file, every array of the same length."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        tokens = file.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, StringArray) or not len(tokens):
            raise CheckpointError(f"{file.path}: has no tokenizer; name one with --tokenizer")
        self.tokens = tokens.tolist()
        self.ids = {token: place for place, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise CheckpointError(f"{file.path}: tokenizer.ggml.tokens holds a token twice")
        self.types = self.numbers("token_type") if "tokenizer.ggml.token_type" in file.metadata else None

    def special_id(self, name: str) -> int | None:
        """The id under tokenizer.ggml.<name>_token_id."""
        value = self.file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if type(value) is int and 0 <= value < len(self.tokens) else None

    def special_token(self, name: str) -> str | None:
        place = self.special_id(name)
        return None if place is None else self.tokens[place]

    def flag(self, name: str, default: bool) -> bool:
        value = self.file.metadata.get(f"tokenizer.ggml.{name}", default)
        return value if isinstance(value, bool) else default

    def of_type(self, *kinds: int) -> list[int]:
        """The ids of the tokens of these types, in order."""
        if self.types is None:
            return list(range(len(self.tokens))) if NORMAL in kinds else []
        return [int(place) for place in np.flatnonzero(np.isin(self.types, kinds))]

    def numbers(self, name: str) -> npt.NDArray[Any]:
        """One number per token."""
        values = self.file.metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(values, np.ndarray) or len(values) != len(self.tokens):
            raise CheckpointError(f"{self.file.path}: tokenizer.ggml.{name} does not hold one number per token")
        return values

    def merges(self) -> list[tuple[str, str]]:
        stored = self.file.metadata.get("tokenizer.ggml.merges")
        if not isinstance(stored, StringArray):
            raise CheckpointError(f"{self.file.path}: tokenizer.ggml.merges is missing")
        pairs = [merge.partition(" ") for merge in stored.tolist()]
        return [(left, right) for left, _, right in pairs]


def build(vocabulary: Vocabulary) -> Tokenizer:
    """Raises CheckpointError for a kind of tokenizer octavo cannot rebuild."""
    path, metadata = vocabulary.file.path, vocabulary.file.metadata
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise CheckpointError(
            f"{path}: its tokenizer is of the kind {kind!r}; octavo reads {' and '.join(_KINDS)}. "
            "Name the model's tokenizer.json folder with --tokenizer"
        )
    try:
        return _KINDS[kind](vocabulary)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises nothing finer
        raise CheckpointError(f"{path}: its tokenizer does not make sense: {error}") from None


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    """GPT-2's kind: text is cut into words, words into bytes, and bytes are merged by rank."""
    name = vocabulary.file.metadata.get("tokenizer.ggml.pre", "default")
    splitter = SPLITTERS.get(str(name))
    if splitter is None:
        logger.warning("unknown pre-tokenizer %r in %s: splitting text as GPT-2 does", name, vocabulary.file.path)
        splitter = _GPT2
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, vocabulary.merges(), ignore_merges=splitter.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in splitter.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=vocabulary.flag("add_space_prefix", False), use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, vocabulary, in_normalized_text=False)
    _frame(tokenizer, vocabulary, add_bos=splitter.add_bos)
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    """SentencePiece's kind: text is one word in which the best-scored neighbours merge; the rest falls to bytes."""
    prefix = vocabulary.flag("add_space_prefix", True)
    unknown = vocabulary.special_token("unknown")
    merges = _merges_by_score(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, merges, unk_token=unknown, byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*decoding, decoders.Strip(" ", 1, 0)] if prefix else decoding)
    # User-defined pieces such as runs of spaces are found after spaces were rewritten, unless a prefix comes with that.
    _add_tokens(tokenizer, vocabulary, in_normalized_text=not prefix)
    _frame(tokenizer, vocabulary, add_bos=True)
    return tokenizer


def _word_piece(vocabulary: Vocabulary) -> Tokenizer:
    """BERT's kind: words without case and accents, cut into the longest pieces. GGUF marks words, BERT what goes on."""
    special = {vocabulary.tokens[place] for place in vocabulary.of_type(CONTROL, UNKNOWN)}

    def spelling(token: str) -> str:
        if token in special:
            return token
        return token.removeprefix(_SPACE) if token.startswith(_SPACE) else f"##{token}"

    ids = {spelling(token): place for token, place in vocabulary.ids.items()}
    unknown, first, separator = (
        next((token for name in names if (token := vocabulary.special_token(name)) is not None), default)
        for names, default in ((("unknown",), "[UNK]"), (("cls", "bos"), "[CLS]"), (_SEPARATORS, "[SEP]"))
    )
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=True, lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _add_tokens(tokenizer, vocabulary, in_normalized_text=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[first, "$A", separator],
        pair=[first, "$A", separator, "$B:1", f"{separator}:1"],
        special_tokens=[(token, ids[token]) for token in (first, separator)],
    )
    return tokenizer


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, the best-scored third first.

    SentencePiece keeps no merges: it joins the neighbours whose union scores best. Ranking all pairs by their union's
    score does the same.
    """
    normal = np.array(vocabulary.of_type(NORMAL))
    best_first = normal[np.argsort(-vocabulary.numbers("scores")[normal], kind="stable")]
    ranked = [token for place in best_first.tolist() if len(token := vocabulary.tokens[place]) <= _LONGEST_PIECE]
    pieces = set(ranked)
    merges = []
    for token in ranked:
        for cut in range(len(token) - 1, 0, -1):
            if (left := token[:cut]) in pieces and (right := token[cut:]) in pieces:
                merges.append((left, right))  # noqa: PERF401  there are half a million: a comprehension is no faster
    return merges


def _add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary, *, in_normalized_text: bool) -> None:
    """Tokens that are found in text before anything else is cut: chat templates are made of them."""
    special = [vocabulary.tokens[place] for place in vocabulary.of_type(CONTROL, UNKNOWN)]
    plain = [vocabulary.tokens[place] for place in vocabulary.of_type(USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special if token])
    tokenizer.add_tokens([AddedToken(token, normalized=in_normalized_text) for token in plain if token])


def _frame(tokenizer: Tokenizer, vocabulary: Vocabulary, *, add_bos: bool) -> None:
    """Put the beginning and end tokens around a text where the model was trained so."""
    bos = vocabulary.special_token("bos") if vocabulary.flag("add_bos_token", add_bos) else None
    eos = vocabulary.special_token("eos") if vocabulary.flag("add_eos_token", False) else None
    if bos is None and eos is None:
        return
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[token for token in (bos, "$A", eos) if token is not None],
        special_tokens=[(token, vocabulary.ids[token]) for token in {bos, eos} if token is not None],
    )


_KINDS: dict[str, Callable[[Vocabulary], Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "bert": _word_piece,
}
