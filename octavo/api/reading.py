"""A model's text as it comes, taken apart into content, reasoning and tool calls.

A format is a generator that reads a `Text` from front to back, once: it yields `Piece`s, and None where it needs more
text than there is. It sees characters and never where one delta ends and the next begins, so a stream says what the
whole text says. What could still become markup is held back, nothing else; what turns out to be none is content.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Literal, NamedTuple, TypeVar

Kind = Literal["content", "reasoning", "call", "arguments"]
T = TypeVar("T")

SPACE = " \t\r\n"
_WINDOW = 2**10
_LONGEST_HEAD = 2**16  # characters held back until it is known whether they begin a call
_LONGEST_SPACE = 2**10  # characters of white space held back


class Piece(NamedTuple):
    kind: Kind
    text: str  # of a call, its name; the arguments that follow are its


Steps = Generator[Piece | None, None, T]


class NotACall(Exception):
    """What looked like a tool call is none."""


class Text:
    """What has come and was not read yet. What is read after a mark can be had back, if it is not too much."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self._dropped = 0
        self._ended = False
        self._plain = False

    @property
    def offset(self) -> int:
        """Characters read so far."""
        return self._dropped + self._at

    @property
    def plain(self) -> bool:
        """Whether all that is to come is content as it is."""
        return self._plain

    def feed(self, text: str) -> None:
        floor = self._at if self._mark is None else self._mark
        self._text = self._text[floor:] + text
        self._at -= floor
        self._dropped += floor
        self._mark = None if self._mark is None else 0

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True

    def mark(self) -> None:
        """Keep what is read from here on, unless it is kept already."""
        if self._mark is None:
            self._mark = self._at

    def release(self) -> str:
        """What was read since the mark, which is gone."""
        kept = "" if self._mark is None else self._text[self._mark : self._at]
        self._mark = None
        return kept

    def rest(self) -> Steps[str]:
        """What is there to be read, or much of it; "" at the end. Raises NotACall where too much would be kept."""
        while not (found := self._text[self._at : self._window]):
            if self._at < len(self._text):
                raise NotACall
            if self._ended:
                return ""
            yield None
        return found

    @property
    def _window(self) -> int:
        """Where to look no further: nobody should search all of a long text again and again."""
        end = self._at + _WINDOW
        return end if self._mark is None else min(end, self._mark + _LONGEST_HEAD)

    def skip(self, count: int) -> None:
        """Count as read so much of `rest`."""
        self._at += count

    # ------------------------------------------------------------------ reading

    def peek(self) -> Steps[str]:
        """The next character, not read; "" at the end."""
        rest = yield from self.rest()
        return rest[:1]

    def take(self, literal: str) -> Steps[bool]:
        """Read `literal` if it is what comes next."""
        while True:
            if (start := self._text[self._at : self._at + len(literal)]) == literal:
                self._at += len(literal)
                return True
            if self._ended or not literal.startswith(start):
                return False
            yield None

    def expect(self, literal: str) -> Steps[None]:
        """Read `literal`. Raises NotACall if something else comes next."""
        if not (yield from self.take(literal)):
            raise NotACall

    def while_in(self, characters: re.Pattern[str]) -> Steps[str]:
        """Read as many characters as the pattern, of a class of them, matches."""
        found = []
        while rest := (yield from self.rest()):
            match = characters.match(rest)
            taken = "" if match is None else match[0]
            self.skip(len(taken))
            found.append(taken)
            if len(taken) < len(rest):
                break
        return "".join(found)

    def space(self) -> Steps[None]:
        """Read white space."""
        while rest := (yield from self.rest()):
            left = len(rest.lstrip(SPACE))
            self.skip(len(rest) - left)
            if left:
                return

    def until(self, *markers: str, kind: Kind = "content") -> Steps[str | None]:
        """Give everything up to the first of the markers, which is not read; None if none comes.

        Raises NotACall where too much would be kept.
        """
        self._plain = not markers and kind == "content"
        while True:
            rest = self._text[self._at : self._window]
            places = [(place, marker) for marker in markers if (place := rest.find(marker)) >= 0]
            place, marker = min(places, default=(len(rest) - _beginning(rest, markers), None))
            last = self._at + len(rest) == len(self._text)
            over = self._ended and last and marker is None
            if over:
                place = len(rest)
            self.skip(place)
            if place:
                yield Piece(kind, rest[:place])
            if over or marker is not None:
                return marker
            if last:
                yield None
            elif not place:
                raise NotACall


def _beginning(text: str, markers: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that is the beginning of a marker."""
    longest = max(map(len, markers), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(marker.startswith(text[start:]) for marker in markers):
            return len(text) - start
    return 0


def held(steps: Steps[T]) -> Steps[tuple[str, T]]:
    """Read the steps' pieces to their end: their text, and what the steps return."""
    found: list[str] = []
    while True:
        try:
            piece = next(steps)
        except StopIteration as end:
            return "".join(found), end.value
        if piece is None:
            yield None
        else:
            found.append(piece.text)


def attempt(text: Text, steps: Steps[None]) -> Steps[bool]:
    """Read a call, if it is one: else what was read of it is content."""
    text.mark()
    try:
        yield from steps
    except NotACall:
        if unread := text.release():
            yield Piece("content", unread)
        return False
    text.release()
    return True


class Reading:
    """One choice being read. White space is dropped where calls, reasoning and content meet, and around reasoning."""

    def __init__(self, text: Text, steps: Steps[None]) -> None:
        self._text = text
        self._steps = steps
        self._kind: Kind = "content"
        self._bare = False  # whether white space that comes now is dropped
        self._space = ""  # that may have to be dropped
        self._reasoned: list[tuple[int, int]] = []  # from where to where the text is reasoning

    @property
    def offset(self) -> int:
        """Characters read so far."""
        return self._text.offset

    @property
    def plain(self) -> bool:
        """Whether all that is to come is content as it is: no need to feed it then, nor to finish."""
        return self._text.plain and self._kind == "content" and not (self._bare or self._space)

    def is_reasoning(self, end: int) -> bool:
        """Whether the character before this place, not beyond `offset`, is reasoning."""
        start, stop = next((span for span in reversed(self._reasoned) if span[0] < end), (0, 0))
        return start < end <= stop

    def feed(self, text: str) -> list[Piece]:
        self._text.feed(text)
        return list(self._read())

    def finish(self) -> list[Piece]:
        """What was held back, now that no more text comes."""
        self._text.end()
        found = list(self._read())
        if self._space and self._kind == "content":
            found.append(Piece("content", self._space))
        return found

    def _read(self) -> Iterator[Piece]:
        for piece in self._steps:
            if piece is None:
                return
            if piece.kind in ("call", "arguments"):
                self._kind, self._space = piece.kind, ""
                yield piece
                continue
            if piece.kind == "reasoning":
                self._note(piece)
            if text := self._trim(piece):
                yield Piece(piece.kind, text)

    def _note(self, piece: Piece) -> None:
        stop = self.offset
        start = stop - len(piece.text)
        if self._reasoned and self._reasoned[-1][1] == start:
            start, _ = self._reasoned.pop()
        self._reasoned.append((start, stop))

    def _trim(self, piece: Piece) -> str:
        if piece.kind != self._kind:
            self._kind, self._bare, self._space = piece.kind, True, ""
        text = self._space + piece.text
        if self._bare:
            text = text.lstrip(SPACE)
            self._bare = not text
        end = max(len(text.rstrip(SPACE)), len(text) - _LONGEST_SPACE)
        self._space = text[end:]
        return text[:end]
