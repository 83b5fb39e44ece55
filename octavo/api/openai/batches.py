"""/v1/batches: many requests in a file, answered when there is room, in OpenAI's shapes. Each key sees its own."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct
from starlette.responses import Response

from octavo.api.batch.records import Batch, Mistake, Status
from octavo.api.desk import Call
from octavo.api.openai.files import Lifetime, batch_service, owner
from octavo.api.operation import Operation
from octavo.api.wire import json_response
from octavo.errors import InvalidRequest

_WINDOW = re.compile(r"([1-9]\d{0,3})([hd])")
_LONGEST_WINDOW = 30 * 86400

MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]


class OutputExpiry(Struct, kw_only=True):
    anchor: Literal["created_at"]
    seconds: Lifetime


class BatchRequest(Struct, kw_only=True):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=16)] | None = None
    output_expires_after: OutputExpiry | None = None


class BatchErrors(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Mistake]


class RequestCounts(Struct, kw_only=True):
    total: int
    completed: int
    failed: int


class BatchObject(Struct, kw_only=True):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, batch: Batch) -> BatchObject:
        same = {name: getattr(batch, name) for name in cls.__struct_fields__ if name in Batch.__struct_fields__}
        return cls(
            errors=BatchErrors(data=batch.mistakes) if batch.mistakes else None,
            request_counts=RequestCounts(total=batch.total, completed=batch.completed, failed=batch.failed),
            **same,
        )


class BatchList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchQuery(Struct, kw_only=True):
    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


async def create_batch(call: Call) -> Response:
    """Have the requests in a file answered."""
    service = batch_service(call)
    request = await call.read(BatchRequest)
    if request.endpoint not in service.endpoints:
        message = f"'endpoint' must be one of {', '.join(service.endpoints)}."
        raise InvalidRequest(message, param="endpoint", code="invalid_value")
    seconds = _window(request.completion_window)
    input_file = await service.files.find(owner(call), request.input_file_id, "input_file_id")
    if input_file.purpose != "batch":
        message = "The input of a batch is a file that was uploaded with the purpose batch."
        raise InvalidRequest(message, param="input_file_id", code="invalid_file_purpose")
    batch = await service.batches.create(
        input_file,
        request.endpoint,
        window=request.completion_window,
        seconds=seconds,
        metadata=request.metadata,
        output_lifetime=None if request.output_expires_after is None else request.output_expires_after.seconds,
    )
    service.runner.start(batch)
    return json_response(BatchObject.of(batch))


def _window(text: str) -> int:
    """In seconds."""
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * {"h": 3600, "d": 86400}[match[2]] if match else 0
    if not 0 < seconds <= _LONGEST_WINDOW:
        message = "'completion_window' must be 24h, or another number of hours or days up to 30d."
        raise InvalidRequest(message, param="completion_window", code="invalid_value")
    return seconds


async def list_batches(call: Call) -> Response:
    """List this key's batches, the newest first."""
    query = call.query(BatchQuery)
    found = await batch_service(call).batches.page(owner(call), after=query.after, limit=query.limit + 1)
    data = [BatchObject.of(batch) for batch in found[: query.limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return json_response(BatchList(data=data, first_id=first, last_id=last, has_more=len(found) > query.limit))


async def retrieve_batch(call: Call) -> Response:
    """How far a batch has come."""
    batch = await batch_service(call).batches.find(owner(call), call.path_params["batch_id"])
    return json_response(BatchObject.of(batch))


async def cancel_batch(call: Call) -> Response:
    """Cancel a batch; what it has answered by then is kept."""
    service = batch_service(call)
    batch = await service.batches.cancel(owner(call), call.path_params["batch_id"])
    service.runner.cancel(batch)
    return json_response(BatchObject.of(batch))


_BATCH = "/v1/batches/{batch_id}"

OPERATIONS = (
    Operation(method="POST", path="/v1/batches", handler=create_batch, takes=BatchRequest, gives=BatchObject),
    Operation(method="GET", path="/v1/batches", handler=list_batches, queries=BatchQuery, gives=BatchList),
    Operation(method="GET", path=_BATCH, handler=retrieve_batch, gives=BatchObject),
    Operation(method="POST", path=_BATCH + "/cancel", handler=cancel_batch, gives=BatchObject),
)
