"""When a request's time is over: altogether, and until its first token. Expiring cancels what runs inside.

Knows nothing of HTTP: the errors it raises say what each becomes on the wire.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from octavo.errors import Overloaded, RequestTimeout


class QueueTimeout(Overloaded):
    code = "queue_timeout"


class Deadline:
    """An asynchronous context; its time begins when it is made. Raises RequestTimeout or QueueTimeout at its end."""

    def __init__(self, seconds: float | None = None, queue_seconds: float | None = None) -> None:
        self._began = asyncio.get_running_loop().time()
        self._seconds = seconds
        self._queue_seconds = queue_seconds
        self._waiting = False  # for the first token
        self._timeout = asyncio.timeout(None)

    def shorten(self, seconds: float | None) -> None:
        """What the caller asks for, unless the server allows less."""
        if seconds is not None:
            self._seconds = seconds if self._seconds is None else min(seconds, self._seconds)
            self._reschedule()

    def await_first_token(self) -> None:
        self._waiting = True
        self._reschedule()

    def first_token(self) -> None:
        if self._waiting:
            self._waiting = False
            self._reschedule()

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._reschedule()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        queued = self._queue_is_shorter  # before anything else is awaited
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise self._error(queued) from None

    @property
    def _queue_is_shorter(self) -> bool:
        return (
            self._waiting
            and self._queue_seconds is not None
            and (self._seconds is None or self._queue_seconds < self._seconds)
        )

    def _reschedule(self) -> None:
        if self._timeout.expired():
            return
        seconds = self._queue_seconds if self._queue_is_shorter else self._seconds
        self._timeout.reschedule(None if seconds is None else self._began + seconds)

    def _error(self, queued: bool) -> Overloaded | RequestTimeout:
        if queued:
            return QueueTimeout(
                f"The request waited for {self._queue_seconds:g} s; the server is busy, try again later."
            )
        return RequestTimeout(f"The request took longer than its {self._seconds:g} s.")
