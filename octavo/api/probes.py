"""GET /live, /ready, /health, /version and /metrics: what orchestrators and dashboards ask; / points people on.

/live says that the process answers; /ready (and its alias /health) that it can generate now.
"""

from __future__ import annotations

from starlette.responses import Response

from octavo import __version__
from octavo.api.desk import Call
from octavo.api.wire import json_response
from octavo.errors import Overloaded
from octavo.metrics import CONTENT_TYPE


class Recovering(Overloaded):
    code = "engine_recovering"


async def root(_: Call) -> Response:
    return json_response({"name": "octavo", "version": __version__, "api": "/v1", "models": "/v1/models"})


async def live(_: Call) -> Response:
    return json_response({"status": "live"})


async def ready(call: Call) -> Response:
    if not call.desk.serving.moving:
        raise Recovering("The engine is late or being restarted; requests wait for it.")
    return json_response({"status": "ready"})


async def version(_: Call) -> Response:
    return json_response({"version": __version__})


async def metrics(call: Call) -> Response:
    return Response(call.desk.known.metrics.render() + call.desk.traffic.render(), media_type=CONTENT_TYPE)
