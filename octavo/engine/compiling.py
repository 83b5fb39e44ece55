"""Requests on their way to the scheduler whose grammars are not compiled yet: a thread does that while steps go on.

llguidance compiles without Python's lock, so no other request's tokens wait. Knows neither the scheduler nor the line.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from octavo.engine.guidance import Grammar, Grammars
from octavo.errors import InvalidRequest
from octavo.request import Request

logger = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class Compiled:
    """A grammar is ready, or why it will never be."""

    request: Request
    grammar: Grammar | None = None
    error: InvalidRequest | None = None


class Compiling:
    """done: called in the thread, for each request in turn."""

    def __init__(self, grammars: Grammars, done: Callable[[Compiled], None]) -> None:
        self._grammars = grammars
        self._done = done
        self._queue: SimpleQueue[Request] = SimpleQueue()
        self._waiting: dict[str, Request] = {}
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiting)

    def begin(self, request: Request) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._waiting[request.request_id] = request
        self._queue.put(request)

    def drop(self, request_id: str) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(request_id, None)

    def end(self, request: Request) -> bool:
        """It is compiled; whether somebody still waits for it."""
        awaited = self._waiting.get(request.request_id) is request
        if awaited:
            del self._waiting[request.request_id]
        return awaited

    def _work(self) -> None:
        while True:
            request = self._queue.get()
            if self._waiting.get(request.request_id) is request:
                self._done(self._compile(request))

    def _compile(self, request: Request) -> Compiled:
        assert request.grammar is not None
        try:
            return Compiled(request, self._grammars.compile(request.grammar))
        except InvalidRequest as error:
            return Compiled(request, error=error)
        except Exception:
            logger.exception(
                "the grammar of request %s could not be compiled",
                request.request_id,
                extra={"request_id": request.request_id},
            )
            return Compiled(request)
