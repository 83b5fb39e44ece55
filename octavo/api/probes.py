"""GET /live, /ready, /health, /version and /metrics: what orchestrators and dashboards ask; / points people on.

/live says that the process answers; /ready (and its alias /health) that it can generate now.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from starlette.responses import Response

from octavo import __version__
from octavo.api.desk import Call
from octavo.api.operation import Operation
from octavo.api.wire import json_response
from octavo.errors import Overloaded
from octavo.metrics import CONTENT_TYPE


class Recovering(Overloaded):
    code = "engine_recovering"


class Greeting(Struct, kw_only=True):
    name: str
    version: str
    api: str
    models: str


class Status(Struct):
    status: Literal["live", "ready"]


class Version(Struct):
    version: str


async def root(_: Call) -> Response:
    return json_response(Greeting(name="octavo", version=__version__, api="/v1", models="/v1/models"))


async def live(_: Call) -> Response:
    return json_response(Status("live"))


async def ready(call: Call) -> Response:
    if not call.desk.serving.moving:
        raise Recovering("The engine is late or being restarted; requests wait for it.")
    return json_response(Status("ready"))


async def version(_: Call) -> Response:
    return json_response(Version(__version__))


async def metrics(call: Call) -> Response:
    return Response(call.desk.known.metrics.render() + call.desk.traffic.render(), media_type=CONTENT_TYPE)


OPERATIONS = (
    Operation(method="GET", path="/", handler=root, gives=Greeting),
    Operation(method="GET", path="/live", handler=live, gives=Status, on_both_ports=True),
    Operation(method="GET", path="/ready", handler=ready, gives=Status, on_both_ports=True),
    Operation(method="GET", path="/health", handler=ready, gives=Status, on_both_ports=True),
    Operation(method="GET", path="/version", handler=version, gives=Version),
    Operation(method="GET", path="/metrics", handler=metrics, for_admins=True),
)
