"""Models for the real SentencePiece library, made from a token table: the judge of what a GGUF vocabulary should do.

The library reads a protocol buffer; the few fields needed are written by hand.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import sentencepiece


def processor(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], *, add_space_prefix: bool
) -> sentencepiece.SentencePieceProcessor:
    """BPE with byte fallback and no normalization, over pieces in the order of their ids."""
    pieces = b"".join(
        _nested(1, _nested(1, token.encode()) + _float(2, score) + _number(3, kind))
        for token, score, kind in zip(tokens, scores, types, strict=True)
    )
    places = {name: tokens.index(name) if name in tokens else -1 for name in ("<unk>", "<s>", "</s>")}
    trainer = _number(3, 2) + _number(35, 1)  # model_type BPE, byte_fallback
    trainer += _number(40, places["<unk>"]) + _number(41, places["<s>"]) + _number(42, places["</s>"])
    normalizer = _nested(1, b"identity") + _number(3, int(add_space_prefix)) + _number(4, 0) + _number(5, 1)
    return sentencepiece.SentencePieceProcessor(model_proto=pieces + _nested(2, trainer) + _nested(3, normalizer))


def _varint(value: int) -> bytes:
    value %= 2**64
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _nested(field: int, raw: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw
