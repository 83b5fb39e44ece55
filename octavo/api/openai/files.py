"""/v1/files: the inputs and outputs of batches, in OpenAI's shapes. Each key sees its own."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp

from octavo.api.batch.files import StoredFile
from octavo.api.batch.multipart import Form, read_form
from octavo.api.batch.service import BatchService
from octavo.api.desk import Call
from octavo.api.operation import Operation
from octavo.api.wire import json_response
from octavo.errors import InvalidRequest, NotFound

_SHORTEST, _LONGEST = 3600, 30 * 86400  # seconds that a file may be kept, where the client says so
Lifetime = Annotated[int, Meta(ge=_SHORTEST, le=_LONGEST)]


class FileObject(Struct, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None

    @classmethod
    def of(cls, file: StoredFile) -> FileObject:
        return cls(
            id=file.id,
            bytes=file.bytes,
            created_at=file.created_at,
            expires_at=file.expires_at,
            filename=file.filename,
            purpose=file.purpose,
        )


class FileList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Struct, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FileUpload(Struct, kw_only=True):
    """The form's fields."""

    file: bytes
    purpose: Literal["batch"]


class FileQuery(Struct, kw_only=True):
    purpose: str | None = None
    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"


def batch_service(call: Call) -> BatchService:
    """Raises NotFound for a server without a data folder."""
    if call.desk.batch is None:
        message = "This server keeps no files or batches; start it with --data-dir FOLDER for both."
        raise NotFound(message, code="data_dir_missing")
    return call.desk.batch


def owner(call: Call) -> str:
    return call.tenant.name or ""


async def upload_file(call: Call) -> Response:
    """Upload the input of a batch."""
    service = batch_service(call)
    assert call.stream is not None
    await service.files.check_room(owner(call), 0)  # before a byte is read
    with service.files.draft() as draft:
        form = await read_form(call.stream.content_type, call.stream.parts, draft, service.limits.file_bytes)
        lifetime = _check(form)
        await service.files.check_room(owner(call), draft.size)
        filename = form.filename or ""
        kept = await service.files.keep(draft, owner(call), purpose="batch", filename=filename, lifetime=lifetime)
    return json_response(FileObject.of(kept))


def _check(form: Form) -> int | None:
    """How many seconds the file is kept; None: until it is deleted."""
    if form.filename is None:
        raise InvalidRequest("Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
    purpose = form.fields.get("purpose")
    if purpose is None:
        message = "Missing required parameter: 'purpose'."
        raise InvalidRequest(message, param="purpose", code="missing_required_parameter")
    if purpose != "batch":
        message = "This server stores the inputs of batches only; 'purpose' must be batch."
        raise InvalidRequest(message, param="purpose", code="invalid_value")
    return _lifetime(form)


def _lifetime(form: Form) -> int | None:
    text = form.fields.get("expires_after[seconds]")
    if text is None:
        return None
    if not text.isdecimal() or not _SHORTEST <= int(text[:18]) <= _LONGEST:
        message = f"'expires_after[seconds]' must be a whole number from {_SHORTEST} to {_LONGEST}."
        raise InvalidRequest(message, param="expires_after", code="invalid_value")
    if form.fields.get("expires_after[anchor]") != "created_at":
        message = "'expires_after[anchor]' must be created_at."
        raise InvalidRequest(message, param="expires_after", code="invalid_value")
    return int(text)


async def list_files(call: Call) -> Response:
    """List this key's files."""
    service, query = batch_service(call), call.query(FileQuery)
    found = await service.files.page(
        owner(call),
        purpose=query.purpose,
        after=query.after,
        limit=query.limit + 1,
        newest_first=query.order == "desc",
    )
    data = [FileObject.of(file) for file in found[: query.limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return json_response(FileList(data=data, first_id=first, last_id=last, has_more=len(found) > query.limit))


async def retrieve_file(call: Call) -> Response:
    """What is known of a file."""
    return json_response(FileObject.of(await _file(call)))


async def file_content(call: Call) -> ASGIApp:
    """A file's content."""
    file = await _file(call)
    path = batch_service(call).files.path(file.id)
    return FileResponse(path, media_type="application/jsonl", filename=file.filename)


async def delete_file(call: Call) -> Response:
    """Delete a file."""
    file_id = call.path_params["file_id"]
    await batch_service(call).files.delete(owner(call), file_id)
    return json_response(FileDeleted(id=file_id))


async def _file(call: Call) -> StoredFile:
    return await batch_service(call).files.find(owner(call), call.path_params["file_id"])


_FILE = "/v1/files/{file_id}"

OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/files",
        handler=upload_file,
        takes=FileUpload,
        media="multipart/form-data",
        gives=FileObject,
    ),
    Operation(method="GET", path="/v1/files", handler=list_files, queries=FileQuery, gives=FileList),
    Operation(method="GET", path=_FILE, handler=retrieve_file, gives=FileObject),
    Operation(method="DELETE", path=_FILE, handler=delete_file, gives=FileDeleted),
    Operation(method="GET", path=_FILE + "/content", handler=file_content, gives_media="application/jsonl"),
)
