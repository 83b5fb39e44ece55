"""An event loop in virtual time: it passes only when nobody has anything to do, and then at once."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

from simulation.books import demand


class Idle(selectors.BaseSelector):
    """No files: waiting is over at once, and the clock shows that it took its time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        demand(timeout is not None, "liveness", "everyone waits and nothing can come")
        self.now += max(timeout or 0.0, 0.0)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._keys[fileobj] = selectors.SelectorKey(fileobj, fileobj, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> dict[Any, selectors.SelectorKey]:  # the loop's own pipe is all that is ever in it
        return self._keys


class Loop(asyncio.SelectorEventLoop):
    """An event loop in virtual time."""

    def __init__(self) -> None:
        self._idle = Idle()
        super().__init__(self._idle)

    def time(self) -> float:
        return self._idle.now
