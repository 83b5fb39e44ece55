"""The core's blocks for those who watch: asked for only when somebody looks, twice a second at most.

Knows neither the core nor who looks; times are the event loop's.
"""

from __future__ import annotations

import asyncio
import math

from octavo.snapshot import Blocks

_SECONDS_BETWEEN = 0.5
_PATIENCE = 0.25  # seconds; a core in a long step answers the next one who looks


class Lookout:
    def __init__(self) -> None:
        self._asked = -math.inf
        self._answer: asyncio.Future[None] | None = None  # that is waited for
        self._last: Blocks | None = None

    def due(self) -> bool:
        """Whether to ask the core now; if so, an answer is expected."""
        now = asyncio.get_running_loop().time()
        if self._answer is not None or now - self._asked < _SECONDS_BETWEEN:
            return False
        self._asked = now
        self._answer = asyncio.get_running_loop().create_future()
        return True

    def see(self, blocks: Blocks | None) -> None:
        """The core's answer; None: the core is gone, and what was known with it."""
        self._last = blocks
        if self._answer is not None:
            self._answer.set_result(None)
            self._answer = None

    async def newest(self) -> Blocks | None:
        """What is known, waiting a moment for an answer that is on its way."""
        if self._answer is not None:
            await asyncio.wait({self._answer}, timeout=_PATIENCE)
        return self._last
