"""Words of a streamed answer are not broken at a terminal's width."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.cli.wrapping import Wrapping

_CONTROL = re.compile(r"\x1b\[(\d+)D\x1b\[K")


def screen(pieces: list[str], columns: int) -> list[str]:
    """The lines that a terminal of so many columns shows."""
    wrapping = Wrapping(columns)
    lines, sent = [""], "".join(wrapping.wrap(piece) for piece in pieces)
    while sent:
        if control := _CONTROL.match(sent):
            assert 0 < int(control[1]) <= len(lines[-1]), "no further back than the line's beginning"
            lines[-1], sent = lines[-1][: -int(control[1])], sent[control.end() :]
            continue
        character, sent = sent[0], sent[1:]
        if character == "\n" or len(lines[-1]) == columns:
            lines.append("")
        lines[-1] += character.strip("\n")
    return lines


def test_a_word_that_does_not_fit_moves_to_the_next_line() -> None:
    assert screen(["The quick bro", "wn fox jumps"], 12) == ["The quick ", "brown fox ", "jumps"]
    assert screen(["one two\n\nthree"], 8) == ["one two", "", "three"]


def test_a_space_at_the_end_of_a_line_begins_none() -> None:
    assert screen(["12345 7890 ab"], 6) == ["12345", "7890 ", "ab"]
    assert screen(["12345 \nab"], 6) == ["12345", "ab"]


def test_a_word_longer_than_a_line_is_left_to_the_terminal() -> None:
    assert "".join(screen(["see https://example.org/a/long/path now"], 12)).split() == [
        "see", "https://example.org/a/long/path", "now"
    ]  # fmt: skip
    assert "\n" not in Wrapping(12).wrap("https://example.org/a/long/path")


@pytest.mark.parametrize(
    ("text", "lines"), [("今日は世界", ["今日は世界"]), ("今日は世界です", ["今日は世界", "です"])]
)
def test_scripts_without_spaces_break_anywhere(text: str, lines: list[str]) -> None:
    assert Wrapping(11).wrap(text).split("\n") == lines


@given(
    words=st.lists(st.text("abé", min_size=1, max_size=9), min_size=1, max_size=40),
    columns=st.integers(10, 30),
    cuts=st.lists(st.integers(0, 300), max_size=9),
)
def test_no_word_is_broken_however_it_comes(words: list[str], columns: int, cuts: list[int]) -> None:
    text = " ".join(words)
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    lines = screen([text[begin:end] for begin, end in pairwise(places)], columns)
    assert [word for line in lines for word in line.split()] == words
    assert all(len(line) < columns for line in lines)
