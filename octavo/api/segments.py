"""An answer as stretches of one kind each: reasoning, text and tool calls, one after the other.

Dialects whose answers are lists of such stretches (Responses, Messages) follow what `Segments.add` tells them; the
segments it keeps are the whole answer. Knows nothing of any dialect's JSON.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from octavo.api.conversation import Part

Kind = Literal["reasoning", "text", "tool_call"]


@dataclass(slots=True, kw_only=True)
class Segment:
    index: int  # among the answer's segments
    kind: Kind
    text: str = ""  # of a tool call its arguments
    id: str = ""  # of a tool call
    name: str = ""
    closed: bool = False


@dataclass(slots=True, kw_only=True)
class Change:
    """A segment begins, grows by `text`, or is over."""

    kind: Literal["open", "grow", "close"]
    segment: Segment
    text: str = ""


@dataclass(slots=True)
class Segments:
    """Those of one choice so far; only the last one is open."""

    all: list[Segment] = field(default_factory=list)
    _call: int = -1  # which tool call the last segment is

    def add(self, part: Part) -> list[Change]:
        """What the part changes. Its end closes the last segment."""
        changes: list[Change] = []
        if part.reasoning:
            self._grow(changes, "reasoning", part.reasoning)
        if part.content:
            self._grow(changes, "text", part.content)
        for call in part.tool_calls:
            if call.index != self._call or self.all[-1].kind != "tool_call":
                assert call.id is not None
                assert call.name is not None
                self._open(changes, Segment(index=len(self.all), kind="tool_call", id=call.id, name=call.name))
                self._call = call.index
            if call.arguments:
                self._grow(changes, "tool_call", call.arguments)
        if part.finish_reason is not None:
            self._close(changes)
        return changes

    def _grow(self, changes: list[Change], kind: Kind, text: str) -> None:
        if not self.all or self.all[-1].closed or self.all[-1].kind != kind:
            self._open(changes, Segment(index=len(self.all), kind=kind))
        segment = self.all[-1]
        segment.text += text
        changes.append(Change(kind="grow", segment=segment, text=text))

    def _open(self, changes: list[Change], segment: Segment) -> None:
        self._close(changes)
        self.all.append(segment)
        changes.append(Change(kind="open", segment=segment))

    def _close(self, changes: list[Change]) -> None:
        if self.all and not self.all[-1].closed:
            self.all[-1].closed = True
            changes.append(Change(kind="close", segment=self.all[-1]))
