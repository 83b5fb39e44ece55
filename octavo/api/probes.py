"""GET /live, /ready, /health, /version and /metrics: what orchestrators and dashboards ask; / points people on.

/live says that the process answers; /ready (and its alias /health) that it can generate now, and which models cannot.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from starlette.responses import Response

from octavo import __version__
from octavo.api.desk import Call
from octavo.api.operation import Operation
from octavo.api.wire import json_response
from octavo.metrics import CONTENT_TYPE, render


class Greeting(Struct, kw_only=True):
    name: str
    version: str
    api: str
    models: str


class Status(Struct, omit_defaults=True):
    status: Literal["live", "ready"]
    not_ready: list[str] = []  # models that should be


class Version(Struct):
    version: str


async def root(_: Call) -> Response:
    return json_response(Greeting(name="octavo", version=__version__, api="/v1", models="/v1/models"))


async def live(_: Call) -> Response:
    return json_response(Status("live"))


async def ready(call: Call) -> Response:
    return json_response(Status("ready", call.desk.check_ready()))


async def version(_: Call) -> Response:
    return json_response(Version(__version__))


async def metrics(call: Call) -> Response:
    engines = (engine.metrics for engine in call.desk.models.engines())
    return Response(render([*engines, call.desk.traffic]), media_type=CONTENT_TYPE)


OPERATIONS = (
    Operation(method="GET", path="/", handler=root, gives=Greeting),
    Operation(method="GET", path="/live", handler=live, gives=Status, on_both_ports=True),
    Operation(method="GET", path="/ready", handler=ready, gives=Status, on_both_ports=True),
    Operation(method="GET", path="/health", handler=ready, gives=Status, on_both_ports=True),
    Operation(method="GET", path="/version", handler=version, gives=Version),
    Operation(method="GET", path="/metrics", handler=metrics, for_admins=True),
)
