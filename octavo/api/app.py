"""The app: which path leads to which handler, and what stands in front of all of them.

`build_app(models, config)` is a function of the models' face and the config alone, so tests drive it in process. Until
a model is ready, /live answers and the rest says 503.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.api import admin, generate, probes, rerank, tokens, watch
from octavo.api.anthropic import messages
from octavo.api.auth import BearerAuth, KnownOrigins
from octavo.api.batch.service import BatchService
from octavo.api.desk import Desk
from octavo.api.dialect import error_response
from octavo.api.exchange import Endpoint, RequestLog
from octavo.api.keys import Keyring
from octavo.api.limits import Limits
from octavo.api.ollama import embed as ollama_embed
from octavo.api.ollama import generate as ollama_generate
from octavo.api.ollama import models as ollama_models
from octavo.api.ollama import store as ollama_store
from octavo.api.openai import batches, chat, completions, embeddings, files, models
from octavo.api.openapi import with_description
from octavo.api.operation import Operation
from octavo.api.page import Page
from octavo.api.responses import create
from octavo.api.tenants import Tenant
from octavo.api.tracing import Tracing
from octavo.config import ServerConfig
from octavo.errors import InvalidRequest, NotFound
from octavo.face import Models

_LISTED: tuple[Operation, ...] = (
    *probes.OPERATIONS,
    *models.OPERATIONS,
    *chat.OPERATIONS,
    *completions.OPERATIONS,
    *create.OPERATIONS,
    *embeddings.OPERATIONS,
    *rerank.OPERATIONS,
    *messages.OPERATIONS,
    *ollama_generate.OPERATIONS,
    *ollama_models.OPERATIONS,
    *ollama_embed.OPERATIONS,
    *ollama_store.OPERATIONS,
    *tokens.OPERATIONS,
    *generate.OPERATIONS,
    *admin.OPERATIONS,
    *files.OPERATIONS,
    *batches.OPERATIONS,
    *watch.OPERATIONS,
)
OPERATIONS = with_description(_LISTED)


class MethodNotAllowed(InvalidRequest):
    status = 405


def build_app(
    models: Models, config: ServerConfig, limits: Limits | None = None, tracing: Tracing | None = None
) -> Starlette:
    """The app; its `state` has `keys`, to be watched, and `admin`, the app of the admin port. Raises ConfigError.

    The desk's `batch`, if there is one, is to be run beside it and closed after it, as is the state's `tracing`.
    """
    desk = Desk(
        limits or Limits.of(config), models, created=int(time.time()), admins_apart=config.admin_port is not None
    )
    keys = Keyring.of(config)
    if config.otlp_traces_endpoint is not None:
        tracing = Tracing.to(config.otlp_traces_endpoint)
    if config.data_dir is not None:
        desk.batch = BatchService.open(
            Path(config.data_dir).expanduser(),
            desk.limits,
            endpoints={each.path: Endpoint(each, desk, tracing) for each in OPERATIONS if each.in_batches},
            find_tenant=functools.partial(_tenant, desk, keys),
            concurrency=config.batch_concurrency,
            others=lambda: desk.used,
            traffic=desk.traffic,
        )
    if config.admin_port is None:
        app = _app(desk, config, keys, OPERATIONS, tracing)
        app.state.admin = None
    else:
        app = _app(desk, config, keys, [each for each in OPERATIONS if not each.for_admins], tracing)
        admin = [each for each in OPERATIONS if each.for_admins or each.on_both_ports]
        app.state.admin = _app(desk, config, keys, admin, tracing)
    app.state.keys = keys
    app.state.tracing = tracing
    return app


def _tenant(desk: Desk, keys: Keyring | None, name: str) -> Tenant | None:
    """Whose a batch is; empty: of a server without keys."""
    if keys is None:
        return None if name else desk.anyone
    return keys.named(name)


def _app(
    desk: Desk, config: ServerConfig, keys: Keyring | None, operations: Collection[Operation], tracing: Tracing | None
) -> Starlette:
    middleware = [Middleware(RequestLog, traffic=desk.traffic), Middleware(Page)]
    if config.allowed_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=config.allowed_origins,
                allow_methods=sorted({each.method for each in operations}),
                allow_headers=("*",),
                expose_headers=("x-request-id",),
            )
        )
    if keys is None:
        middleware.append(
            Middleware(KnownOrigins, origins=config.allowed_origins, hosts=(config.host, config.admin_host))
        )
    else:
        middleware.append(Middleware(BearerAuth, keys=keys, root_path=config.root_path))
    by_path: dict[str, dict[str, ASGIApp]] = {}
    for each in operations:
        by_path.setdefault(each.path, {})[each.method] = Endpoint(each, desk, tracing)
    routes = [
        Route(path, ByMethod(endpoints), methods=list(endpoints), name=path) for path, endpoints in by_path.items()
    ]
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _routing_error})
    app.router.redirect_slashes = False
    app.state.desk = desk
    return app


class ByMethod:
    """The operations of one path."""

    def __init__(self, endpoints: Mapping[str, ASGIApp]) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self._endpoints[method](scope, receive, send)


async def _routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    shown = f"{request.method} {path[:200]}"
    allow = dict(error.headers or {})
    if error.status_code != 405:
        return error_response(NotFound(f"Invalid URL ({shown}){_elsewhere(request)}"), request.scope)
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=allow)
    message = f"Invalid method for URL ({shown}); it takes {allow['Allow']}"
    return error_response(MethodNotAllowed(message), request.scope, allow)


def _elsewhere(request: Request) -> str:
    """Where to look for what is not here."""
    path = request.scope["path"].removeprefix(request.scope["root_path"])
    if any(path == operation.path for operation in OPERATIONS if operation.for_admins):
        return "; it is answered on the admin port"
    bare = path.rstrip("/")
    while bare.startswith("/v1/"):
        bare = bare.removeprefix("/v1")
    routes = {route.path: route for route in request.app.routes if isinstance(route, Route) and route.path != "/"}
    meant = next((each for each in (bare, "/v1" + bare) if each in routes), None)
    if meant is None:
        meant = next(iter(get_close_matches(path[:200], routes, n=1, cutoff=0.85)), None)
    if meant is None:
        return ""
    methods = routes[meant].methods or {"GET"}
    return f"; did you mean {request.method if request.method in methods else min(methods)} {meant}?"
