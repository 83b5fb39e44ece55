"""GET /v1/models and /v1/models/{id}, and the names under which clients may ask for the model."""

from __future__ import annotations

import hashlib

from starlette.responses import Response

from octavo import __version__
from octavo.api.desk import Call
from octavo.api.openai.types import ModelCard, ModelList
from octavo.api.wire import json_response
from octavo.errors import ModelNotFound
from octavo.face import Engine


def served_names(engine: Engine) -> tuple[str, ...]:
    return engine.config.model.served_model_name or (engine.checkpoint.name,)


def check_model(engine: Engine, name: str | None) -> str:
    """The name to answer with; None asks for the only model there is. Raises ModelNotFound."""
    names = served_names(engine)
    if name is None:
        return names[0]
    if name not in names:
        raise _not_found(name, names)
    return name


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
    return json_response(_card(call, engine, check_model(engine, call.path_params["model"])))


def _card(call: Call, engine: Engine, name: str) -> ModelCard:
    created, length = call.desk.created, engine.max_model_len
    return ModelCard(id=name, created=created, root=engine.checkpoint.name, max_model_len=length)


def _not_found(name: str, names: tuple[str, ...]) -> ModelNotFound:
    shown = name if len(name) <= 64 else name[:64] + "…"
    return ModelNotFound(f"The model {shown!r} does not exist; this server has {', '.join(names)}.", param="model")
