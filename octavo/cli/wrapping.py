"""Lines broken between words at a terminal's width, while text streams in piece by piece."""

from __future__ import annotations

import unicodedata

_TAB = 8
_NO_BREAK = "\N{NO-BREAK SPACE}"


class Wrapping:
    """One answer, from the beginning of a line. Nothing is held back: a word that proves too long for its line is taken
    back from the terminal and said again on the next one. A word longer than a line breaks where the terminal likes.
    """

    def __init__(self, columns: int) -> None:
        self._columns = max(columns - 1, 1)  # in the last one a terminal's cursor is in doubt
        self._column = 0
        self._word, self._width = "", 0  # the last word so far, and the columns that it takes

    def wrap(self, text: str) -> str:
        """The text with line ends, and controls that take a word back."""
        return "".join(map(self._next, text))

    def _next(self, character: str) -> str:
        if character in "\n\r":
            self._column, self._word, self._width = 0, "", 0
            return character
        if character.isspace() and character != _NO_BREAK:
            self._word, self._width = "", 0
            self._column += _TAB - self._column % _TAB if character == "\t" else 1
            return character if self._column <= self._columns else ""
        wide = _columns(character)
        if wide == 2:  # scripts that are written so have no spaces, and break anywhere
            self._word, self._width = "", 0
        before = self._make_room() if self._column + wide > self._columns else ""
        if wide < 2:
            self._word, self._width = self._word + character, self._width + wide
        self._column += wide
        return before + character

    def _make_room(self) -> str:
        if self._column <= self._width:  # the word has this line for itself
            self._column = 0
            return ""
        self._column = self._width
        return f"\x1b[{self._width}D\x1b[K\n{self._word}" if self._width else "\n"


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
