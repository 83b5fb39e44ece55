"""What operators may see and change of a server's models while it runs: /v1/admin/models, Triton's names for it, and
vLLM's sleep.

What is changed here holds until the declaration changes: that is the truth whenever it does. Knows nothing of how
models are loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct
from starlette.responses import Response

from octavo.api.desk import Call
from octavo.api.operation import Handler, Operation
from octavo.api.wire import json_response
from octavo.engine.slumber import check_level
from octavo.errors import CheckpointError, ConfigError, InvalidRequest, LoadFailed
from octavo.face import Engine, ModelStatus, State, VersionStatus

_MODEL = "/v1/admin/models/{model:path}"

Version = Annotated[int, Meta(ge=1, le=10**12)]
Weight = Annotated[int, Meta(ge=0, le=10**6)]
Label = Annotated[str, Meta(min_length=1, max_length=64)]


class ModelStatusList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelStatus]


class TrafficRequest(Struct, kw_only=True):
    traffic: Annotated[dict[str, Weight], Meta(min_length=1, max_length=64)]  # version -> weight


class LabelsRequest(Struct, kw_only=True):
    labels: Annotated[dict[Label, Version], Meta(max_length=64)]


class IndexEntry(Struct, kw_only=True):
    """One version, in Triton's words."""

    name: str
    version: str
    state: Literal["UNAVAILABLE", "LOADING", "READY", "UNLOADING"]
    reason: str


class Nothing(Struct):
    """An empty object."""


async def list_status(call: Call) -> Response:
    """All models and versions: state, memory, requests, last use."""
    return json_response(ModelStatusList(data=call.desk.models.status()))


async def show_status(call: Call) -> Response:
    """One model and its versions."""
    name = call.desk.models.find(call.path_params["model"]).model
    return json_response(next(status for status in call.desk.models.status() if status.name == name))


async def load(call: Call) -> Response:
    """Load a model: the versions that its declaration asks for. Answers when they are ready."""
    return json_response(await call.desk.models.load(call.path_params["model"]))


async def unload(call: Call) -> Response:
    """Unload a model when its requests are finished; the next request loads it again."""
    return json_response(call.desk.models.unload(call.path_params["model"]))


async def load_version(call: Call) -> Response:
    """Load one version, be it one that the policy leaves out. Answers when it is ready."""
    return json_response(await call.desk.models.load(call.path_params["model"], _version(call)))


async def unload_version(call: Call) -> Response:
    """Unload one version when its requests are finished."""
    return json_response(call.desk.models.unload(call.path_params["model"], _version(call)))


async def roll_back(call: Call) -> Response:
    """Have requests of a model's name go where they went before, or to the version before."""
    return json_response(call.desk.models.roll_back(call.path_params["model"]))


async def set_traffic(call: Call) -> Response:
    """Have versions share the requests of a model's name by weight."""
    request = await call.read(TrafficRequest)
    traffic = {_number(version): weight for version, weight in request.traffic.items()}
    return json_response(call.desk.models.redirect(call.path_params["model"], traffic=traffic))


async def set_labels(call: Call) -> Response:
    """Have labels stand for versions; those that are not named are gone."""
    request = await call.read(LabelsRequest)
    return json_response(call.desk.models.redirect(call.path_params["model"], labels=request.labels))


def _version(call: Call) -> int:
    return _number(call.path_params["version"])


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 12 and int(text)):
        raise InvalidRequest(f"A version is a whole number from 1, not {text[:32]!r}.", param="version")
    return int(text)


# ---------------------------------------------------------------------------------------------- sleep, as vLLM has it


class SleepQuery(Struct, kw_only=True):
    level: int = 1  # 1: a GPU's weights stay in the machine's memory; 2: they are read again
    model: str | None = None  # of several; without one all that are loaded


class ModelQuery(Struct, kw_only=True):
    model: str | None = None


class Sleeping(Struct, kw_only=True):
    is_sleeping: bool  # all of those that were asked about


async def sleep(call: Call) -> Response:
    """Free the memory that models take. Answers when the requests in flight are finished and it is free."""
    query = call.query(SleepQuery)
    check_level(query.level)
    return await _rest(call, query.model, lambda engine: engine.sleep(query.level))


async def wake_up(call: Call) -> Response:
    """Go on after sleep. Answers when requests may be made."""
    return await _rest(call, call.query(ModelQuery).model, lambda engine: engine.wake_up())


async def is_sleeping(call: Call) -> Response:
    """Whether the models that are loaded sleep."""
    return json_response(_sleeping(call.desk.models.engines(call.query(ModelQuery).model)))


async def _rest(call: Call, model: str | None, do: Callable[[Engine], Awaitable[None]]) -> Response:
    engines = call.desk.models.engines(model)
    try:
        await asyncio.gather(*map(do, engines))
    except (ConfigError, CheckpointError) as error:
        raise LoadFailed(error.message) from None
    return json_response(_sleeping(engines))


def _sleeping(engines: Sequence[Engine]) -> Sleeping:
    return Sleeping(is_sleeping=bool(engines) and all(engine.is_sleeping for engine in engines))


# ---------------------------------------------------------------------------------------------- in Triton's words

_TRITON: dict[State, Literal["UNAVAILABLE", "LOADING", "READY", "UNLOADING"]] = {
    "declared": "UNAVAILABLE",
    "loading": "LOADING",
    "ready": "READY",
    "draining": "UNLOADING",
    "failed": "UNAVAILABLE",
}


async def repository_index(call: Call) -> Response:
    """All versions of all models, as Triton lists them."""
    return json_response([_entry(model, each) for model in call.desk.models.status() for each in model.versions])


def _entry(model: ModelStatus, version: VersionStatus) -> IndexEntry:
    reason = version.reason or ("unloaded" if version.state == "declared" else "")
    return IndexEntry(name=model.name, version=str(version.version), state=_TRITON[version.state], reason=reason)


async def repository_load(call: Call) -> Response:
    """Load a model, as Triton's clients ask for it."""
    await call.desk.models.load(call.path_params["model"])
    return json_response(Nothing())


async def repository_unload(call: Call) -> Response:
    """Unload a model, as Triton's clients ask for it."""
    call.desk.models.unload(call.path_params["model"])
    return json_response(Nothing())


def _operation(
    method: Literal["GET", "POST", "PUT"],
    path: str,
    handler: Handler,
    *,
    takes: type[Struct] | None = None,
    gives: object = ModelStatus,
    queries: type[Struct] | None = None,
) -> Operation:
    return Operation(
        method=method, path=path, handler=handler, takes=takes, queries=queries, gives=gives, for_admins=True
    )


OPERATIONS = (
    _operation("GET", "/v1/admin/models", list_status, gives=ModelStatusList),
    _operation("POST", _MODEL + "/versions/{version}/load", load_version),
    _operation("POST", _MODEL + "/versions/{version}/unload", unload_version),
    _operation("POST", _MODEL + "/load", load),
    _operation("POST", _MODEL + "/unload", unload),
    _operation("POST", _MODEL + "/rollback", roll_back),
    _operation("PUT", _MODEL + "/traffic", set_traffic, takes=TrafficRequest),
    _operation("PUT", _MODEL + "/labels", set_labels, takes=LabelsRequest),
    _operation("GET", _MODEL, show_status),
    _operation("POST", "/sleep", sleep, queries=SleepQuery, gives=Sleeping),
    _operation("POST", "/wake_up", wake_up, queries=ModelQuery, gives=Sleeping),
    _operation("GET", "/is_sleeping", is_sleeping, queries=ModelQuery, gives=Sleeping),
    _operation("POST", "/v2/repository/index", repository_index, gives=list[IndexEntry]),
    _operation("POST", "/v2/repository/models/{model:path}/load", repository_load, gives=Nothing),
    _operation("POST", "/v2/repository/models/{model:path}/unload", repository_unload, gives=Nothing),
)
