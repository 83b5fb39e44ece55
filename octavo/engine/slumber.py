"""Whether an engine sleeps, lets requests in, and needs a core; and the wait for its core to do as it was told.

Knows neither requests nor cores. One event loop owns it.
"""

from __future__ import annotations

import asyncio

from octavo.errors import Asleep, InvalidRequest, OctavoError

LEVELS = (1, 2)


class Slumber:
    """Awake when made. `turn`: of those who send it to sleep or wake it, one at a time."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.asleep = False
        self.open = True  # who comes may come in
        self._target = False  # asleep or not, as it was told last
        self._needed = asyncio.Event()
        self._needed.set()
        self._answer: asyncio.Future[None] | None = None

    def check(self) -> None:
        """Raises Asleep unless requests may come in."""
        if not self.open:
            raise Asleep("The model is asleep; POST /wake_up wakes it.")

    async def needed(self) -> None:
        """Until a core is."""
        await self._needed.wait()

    @property
    def pending(self) -> bool:
        """Told something that is not done yet."""
        return self._answer is not None and not self._answer.done()

    @property
    def falling(self) -> bool:
        return self.pending and self._target

    def tell(self, *, asleep: bool) -> None:
        """The core is told, or one is to be started, now."""
        assert not self.pending
        self._target = asleep
        self._answer = asyncio.get_running_loop().create_future()
        self._mind(asleep)

    def answer(self, error: OctavoError | None = None) -> None:
        """What was told is done, or cannot be; then things are as they were."""
        if self._answer is None or self._answer.done():
            return
        if error is None:
            self.asleep = self._target
            self._answer.set_result(None)
        else:
            self._answer.set_exception(error)
            self._answer.exception()  # heard: nobody may be waiting
        self._mind(self.asleep)
        self.open = not self.asleep

    async def obeyed(self) -> None:
        """Until what was told last is done. Raises why it cannot be."""
        assert self._answer is not None
        await asyncio.shield(self._answer)

    async def settled(self) -> None:
        """Until nothing is pending, however that ends."""
        if self._answer is not None and self.pending:
            await asyncio.wait([self._answer])

    def _mind(self, asleep: bool) -> None:
        if asleep:
            self._needed.clear()
        else:
            self._needed.set()


def check_level(level: int) -> None:
    """Raises InvalidRequest."""
    if level not in LEVELS:
        raise InvalidRequest(
            "level must be 1 (weights stay in the machine's memory) or 2 (they are read again)", param="level"
        )
