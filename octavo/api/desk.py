"""What handlers work with: the desk that all requests share, and the call that one request is.

Handlers see no HTTP: they take a `Call` and return something that can be sent. The engine may still be starting.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgspec import Struct

from octavo.api.limits import LOGGED_FIELDS, LOGGED_NAME_LENGTH, Limits
from octavo.api.wire import decode
from octavo.errors import EngineDead, Overloaded
from octavo.face import Engine

logger = logging.getLogger("octavo.api")

T = TypeVar("T", bound=Struct)


class Starting(Overloaded):
    code = "model_loading"


class ShuttingDown(Overloaded):
    code = "shutting_down"


class IgnoredFields:
    """Says in the log which fields of bodies nobody reads: a mistyped `max_token` would else go unnoticed.

    Names only, shortened, and one line a second at most, whatever clients send.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until = 0.0
        self._unsaid = 0

    def note(self, names: Collection[str]) -> None:
        now = self._clock()
        if now < self._quiet_until:
            self._unsaid += 1
            return
        shown = [ascii(name[:LOGGED_NAME_LENGTH]) for name in sorted(names)[:LOGGED_FIELDS]]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        since = f" ({self._unsaid} more since the last warning)" if self._unsaid else ""
        logger.warning("fields of a request that were ignored: %s%s%s", ", ".join(shown), more, since)
        self._quiet_until, self._unsaid = now + 1.0, 0


@dataclass(slots=True)
class Desk:
    """What all requests share. `engine` is None until it has been started."""

    limits: Limits
    engine: Engine | None = None
    draining: bool = False
    created: int = 0
    ignored: IgnoredFields = field(default_factory=IgnoredFields)

    @property
    def serving(self) -> Engine:
        """The engine, able to generate. Raises Overloaded or EngineDead."""
        if self.draining:
            raise ShuttingDown("The server is shutting down.")
        engine = self.known
        if engine.dead:
            raise EngineDead("The engine has stopped; the server needs a restart.")
        if not engine.ready:
            raise Starting("The model is still loading; try again in a moment.")
        return engine

    @property
    def known(self) -> Engine:
        """The engine, loaded or not. Raises Overloaded before there is one."""
        if self.engine is None:
            raise Starting("The server is still starting; try again in a moment.")
        return self.engine


@dataclass(slots=True)
class Call:
    """What a handler gets: the decoded HTTP request, without HTTP."""

    desk: Desk
    request_id: str  # 32 hex digits, made by the server
    body: bytes
    path_params: dict[str, Any]

    async def read(self, shape: type[T], unsupported: Mapping[str, str] | None = None) -> T:
        """The body as a struct, as `decode` reads it. Raises InvalidRequest."""
        return await decode(self.body, shape, unsupported, self.desk.ignored.note)
