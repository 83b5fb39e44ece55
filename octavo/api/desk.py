"""What handlers work with: the desk that all requests share, and the call that one request is.

Handlers see no HTTP: they take a `Call` and return something that can be sent. The engine may still be starting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.api.limits import Limits
from octavo.errors import EngineDead, Overloaded
from octavo.face import Engine


class Starting(Overloaded):
    code = "model_loading"


class ShuttingDown(Overloaded):
    code = "shutting_down"


@dataclass(slots=True)
class Desk:
    """What all requests share. `engine` is None until it has been started."""

    limits: Limits
    engine: Engine | None = None
    draining: bool = False
    created: int = 0

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
