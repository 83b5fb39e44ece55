"""Prompts for a gap, in the layout that each family was trained with."""

from __future__ import annotations

import pytest

from octavo.engine.infill import fill_in
from octavo.errors import InvalidRequest

TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<fim_prefix>", "<fim_suffix>",
          "<fim_middle>", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>",
          "[PREFIX]", "[SUFFIX]")  # fmt: skip


class Letters:
    """Ids are code points; those of TOKENS begin at 1000, 0 begins a text and 1 ends it."""

    vocab_size = 2000
    chat_template = None

    def __init__(self, known: tuple[str, ...], begins: bool = True, ends: bool = False) -> None:
        self.known = known
        self.around = ([0] * begins, [1] * ends)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        before, after = self.around if add_special_tokens else ([], [])
        return [*before, *map(ord, text), *after]

    def token_id(self, token: str) -> int | None:
        return 1000 + TOKENS.index(token) if token in self.known else None

    def shown(self, ids: list[int]) -> str:
        return "".join(TOKENS[each - 1000] if each >= 1000 else chr(each or ord("^")) for each in ids)


@pytest.mark.parametrize(
    ("known", "prompt", "ends"),
    [
        (TOKENS[:4], "^<|fim_prefix|>ab<|fim_suffix|>yz<|fim_middle|>", ["<|fim_pad|>"]),
        (TOKENS[4:7], "^<fim_prefix>ab<fim_suffix>yz<fim_middle>", []),
        (TOKENS[7:10], "^<｜fim▁begin｜>ab<｜fim▁hole｜>yz<｜fim▁end｜>", []),
        (TOKENS[10:14], "^▁<PRE>ab▁<SUF>yz▁<MID>", ["▁<EOT>"]),
        (TOKENS[14:], "^[SUFFIX]yz[PREFIX]ab", []),
    ],
)
def test_layouts(known: tuple[str, ...], prompt: str, ends: list[str]) -> None:
    letters = Letters(known)
    gap = fill_in(letters, "ab", "yz")
    assert letters.shown(gap.token_ids) == prompt
    assert letters.shown(gap.stop_token_ids) == "".join(ends)
    assert fill_in(letters, [97, 98], "yz") == gap


def test_only_what_begins_a_text_is_put_before_it() -> None:
    for begins in (False, True):
        letters = Letters(TOKENS[4:7], begins, ends=True)
        ids = fill_in(letters, "", "x").token_ids
        assert letters.shown(ids) == "^" * begins + "<fim_prefix><fim_suffix>x<fim_middle>"


@pytest.mark.parametrize("known", [(), TOKENS[:2], ("<fim_prefix>", "<|fim_suffix|>", "▁<MID>")])
def test_a_model_without_the_tokens_says_so(known: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest, match="not trained to fill in the middle"):
        fill_in(Letters(known), "a", "b")
