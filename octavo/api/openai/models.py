"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import hashlib

from starlette.responses import Response

from octavo import __version__
from octavo.api.desk import Call
from octavo.api.openai.types import ModelCard, ModelList
from octavo.api.operation import Operation
from octavo.api.wire import json_response
from octavo.face import Engine, Known


def fingerprint(engine: Engine) -> str:
    """Changes when the same request may give other tokens: another octavo, model, version or dtype."""
    model = engine.config.model
    identity = f"{__version__}\0{engine.checkpoint.name}\0{model.revision}\0{model.dtype}\0{engine.version}"
    return "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:10]


async def list_models(call: Call) -> Response:
    return json_response(ModelList(data=[_card(call, known) for known in call.desk.known()]))


async def retrieve_model(call: Call) -> Response:
    """One model, also by a label or a version: NAME:LABEL."""
    call.desk.check_serving()
    return json_response(_card(call, call.desk.models.find(call.path_params["model"])))


def _card(call: Call, known: Known) -> ModelCard:
    return ModelCard(
        id=known.name,
        created=call.desk.created,
        root=known.root,
        max_model_len=known.max_model_len,
        state=known.state,
        version=known.version,
        versions=known.versions,
    )


OPERATIONS = (
    Operation(method="GET", path="/v1/models", handler=list_models, gives=ModelList),
    Operation(method="GET", path="/v1/models/{model:path}", handler=retrieve_model, gives=ModelCard),
)
