"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import hashlib

from starlette.responses import Response

from octavo import __version__
from octavo.api.desk import Call
from octavo.api.openai.types import ModelCard, ModelList
from octavo.api.operation import Operation
from octavo.api.served import serve_as, served_names
from octavo.api.wire import json_response
from octavo.face import Engine


def fingerprint(engine: Engine) -> str:
    """Changes when the same request may give other tokens: another octavo, model or dtype."""
    model = engine.config.model
    identity = f"{__version__}\0{engine.checkpoint.name}\0{model.revision}\0{model.dtype}"
    return "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:10]


async def list_models(call: Call) -> Response:
    engine = call.desk.serving
    return json_response(ModelList(data=[_card(call, engine, name) for name in served_names(engine)]))


async def retrieve_model(call: Call) -> Response:
    engine = call.desk.serving
    return json_response(_card(call, engine, serve_as(engine, call.path_params["model"]).name))


def _card(call: Call, engine: Engine, name: str) -> ModelCard:
    created, length = call.desk.created, engine.max_model_len
    return ModelCard(id=name, created=created, root=engine.checkpoint.name, max_model_len=length)


OPERATIONS = (
    Operation(method="GET", path="/v1/models", handler=list_models, gives=ModelList),
    Operation(method="GET", path="/v1/models/{model:path}", handler=retrieve_model, gives=ModelCard),
)
