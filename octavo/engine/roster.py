"""Who is on the core, who waits for it, and who is suspected of having killed it.

After a death every request that was on the core is a suspect. Suspects board the next core one at a time, each when the
one before has got further, so that a core which dies again names its killer. Two crashes with nothing gained in
between, and a request is refused; a foreign SIGKILL (an operator's, or the memory killer's) proves less.

A silent request, whose progress nobody sees before its end, boards after the other suspects, and newcomers board beside
it. If the core dies before all of those have got output, nobody is named, and its next trial is without company.
Knows ids only: neither tokens nor processes nor time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

CRASH, FOREIGN_KILL = 3, 1  # what a death weighs against the one request that can have caused it
_REFUSED = 6


@dataclass(slots=True)
class _Entry:
    silent: bool  # gets its output all at once
    aboard: bool = False
    suspect: bool = False  # was on a core that died, and has not got further since
    proven: bool = False  # has got further on this core
    blame: int = 0
    apart: bool = False  # its trial ended in a death that company may have caused: the next one is without


class Roster:
    """Requests from their acceptance to their end, in order of arrival."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._ashore: dict[str, None] = {}  # not on the core: suspects, then new ones
        self._on_trial: str | None = None  # the suspect that is on the core and has not got further yet

    @property
    def aboard(self) -> bool:
        """Whether the core has anything to do."""
        return len(self._entries) > len(self._ashore)

    def add(self, request_id: str, *, silent: bool = False) -> None:
        """silent: it gets its output all at once, at the end; as a suspect it lets the others pass."""
        self._entries[request_id] = _Entry(silent)
        self._ashore[request_id] = None

    def is_aboard(self, request_id: str) -> bool:
        entry = self._entries.get(request_id)
        return entry is not None and entry.aboard

    def board(self) -> Iterator[tuple[str, bool]]:
        """The requests to be sent to the core now, and whether they were on one before. Ask after every change."""
        while (request_id := self._next()) is not None:
            del self._ashore[request_id]
            entry = self._entries[request_id]
            entry.aboard = True
            if entry.suspect:
                self._on_trial = request_id
            yield request_id, entry.suspect

    def _next(self) -> str | None:
        if self._on_trial is None:
            return next(iter(self._ashore), None)
        on_trial = self._entries[self._on_trial]
        if not on_trial.silent or on_trial.apart:
            return None
        return next((request_id for request_id in self._ashore if not self._entries[request_id].suspect), None)

    def advance(self, request_ids: Iterable[str]) -> None:
        """These got output."""
        for request_id in request_ids:
            entry = self._entries.get(request_id)
            if entry is not None and not entry.proven:
                entry.proven, entry.suspect, entry.blame = True, False, 0
                self._acquit(request_id)

    def end(self, request_id: str) -> None:
        self._entries.pop(request_id, None)
        self._ashore.pop(request_id, None)
        self._acquit(request_id)

    def bury(self, weight: int) -> str | None:
        """The core died. All who were on it go ashore; the request that is to be refused for it, if there is one."""
        aboard = {request_id: entry for request_id, entry in self._entries.items() if entry.aboard}
        suspects = [request_id for request_id, entry in aboard.items() if not entry.proven] or list(aboard)
        guilty = None
        if len(suspects) == 1:
            entry = aboard[suspects[0]]
            entry.blame += weight
            guilty = suspects[0] if entry.blame >= _REFUSED else None
        elif self._on_trial is not None:
            aboard[self._on_trial].apart = True
        for entry in aboard.values():
            entry.aboard, entry.proven, entry.suspect = False, False, True
        self._on_trial = None
        order = sorted(aboard, key=lambda request_id: (aboard[request_id].silent, -aboard[request_id].blame))
        self._ashore = dict.fromkeys([*order, *self._ashore])
        return guilty

    def _acquit(self, request_id: str) -> None:
        if self._on_trial == request_id:
            self._on_trial = None
