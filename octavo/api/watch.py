"""GET /v1/live: what the engines are doing now, for the page's live view and for whoever else watches.

Numbers and request ids only. A look costs each engine a message, and its core a few milliseconds twice a second at
most, however many watch.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from msgspec import Struct
from starlette.responses import Response

from octavo.api.desk import Call
from octavo.api.operation import Operation
from octavo.api.wire import json_response
from octavo.face import Engine
from octavo.snapshot import EngineView


class ModelView(Struct, kw_only=True):
    """A version of a model that is loaded, or being loaded."""

    name: str
    version: int
    engine: EngineView


class LiveView(Struct, kw_only=True):
    object: Literal["live"] = "live"
    models: list[ModelView]


async def look(call: Call) -> Response:
    """What every engine is doing: requests in flight, the blocks of its KV cache, totals since its start."""
    models = await asyncio.gather(*(_look(engine) for engine in call.desk.models.engines()))
    return json_response(LiveView(models=models))


async def _look(engine: Engine) -> ModelView:
    name = next(iter(engine.config.model.served_model_name), engine.checkpoint.name)
    return ModelView(name=name, version=engine.version, engine=await engine.look())


OPERATIONS = (Operation(method="GET", path="/v1/live", handler=look, gives=LiveView, for_admins=True),)
