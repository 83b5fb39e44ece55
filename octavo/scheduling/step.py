"""A step under way: what was ordered of whom, until its result comes. Several may be, in the order of their numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.scheduling.sequence import Group, Sequence


@dataclass(slots=True)
class Part:
    """A sequence's row. What comes of it is for the `incarnation` that it was ordered for."""

    sequence: Sequence
    start: int
    end: int
    incarnation: int
    promises: bool  # its result brings what follows: tokens, candidates or a pooled prompt


@dataclass(slots=True)
class Step:
    number: int
    parts: dict[int, Part] = field(default_factory=dict)  # by sequence id
    started: list[Group] = field(default_factory=list)  # requests whose first tokens it computes
    preempted: list[Sequence] = field(default_factory=list)  # that gave way in it, as often as they did

    def whose(self, sequence_id: int) -> tuple[str, int] | None:
        """A row's request, and which of that one's sequences it is; None once that has ended."""
        sequence = self.parts[sequence_id].sequence
        return (sequence.group.request.request_id, sequence.index) if sequence.alive else None
