"""A form as it arrives: short fields are kept, the one file goes to a draft piece by piece.

The bytes are python-multipart's business; here is what a form may hold. Every mistake in it is an InvalidRequest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from octavo.api.batch.files import Draft
from octavo.api.limits import FILE_NAME_LENGTH, FORM_FIELD_LENGTH, FORM_FIELDS
from octavo.errors import InvalidRequest, RequestTooLarge

_FILE_FIELD = "file"


@dataclass(slots=True)
class Form:
    """What a form held besides the file's content."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None  # None: there was no file


class _Reader:
    """Takes the parser's callbacks."""

    def __init__(self, draft: Draft, most: int) -> None:
        self.form = Form()
        self.ended = False
        self._draft = draft
        self._most = most
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._disposition = b""
        self._name = ""
        self._value: bytearray | None = None  # None: the part is the file

    def on_part_begin(self) -> None:
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        if kind != b"form-data" or b"name" not in options:
            raise InvalidRequest("Each part of the form needs a header `Content-Disposition: form-data; name=…`.")
        self._name = options[b"name"].decode("utf-8", "replace")
        if self._name != _FILE_FIELD:
            if len(self.form.fields) >= FORM_FIELDS:
                raise InvalidRequest(f"The form has more than {FORM_FIELDS} fields.")
            self._value = bytearray()
            return
        if self.form.filename is not None:
            raise InvalidRequest("The form has more than one file.", param=_FILE_FIELD)
        self._value = None
        name = options.get(b"filename", b"").decode("utf-8", "replace")
        self.form.filename = name[-FILE_NAME_LENGTH:] or "upload"

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is None:
            if self._draft.size + end - start > self._most:
                raise RequestTooLarge(f"The file is larger than {self._most} bytes.", param=_FILE_FIELD)
            self._draft.add(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > FORM_FIELD_LENGTH:
            raise InvalidRequest(f"A field of the form has more than {FORM_FIELD_LENGTH} bytes.")

    def on_part_end(self) -> None:
        if self._value is not None:
            self.form.fields[self._name] = self._value.decode("utf-8", "replace")

    def on_end(self) -> None:
        self.ended = True


async def read_form(content_type: str, parts: AsyncIterator[bytes], draft: Draft, most: int) -> Form:
    """The form whose file, of `most` bytes at most, is in the draft now. Raises InvalidRequest."""
    _, options = parse_options_header(content_type.encode("latin-1"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise InvalidRequest("The form's Content-Type has no boundary; let your HTTP client set the header.")
    reader = _Reader(draft, most)
    names = (name for name in dir(reader) if name.startswith("on_"))
    try:
        parser = MultipartParser(boundary, {name: getattr(reader, name) for name in names})  # type: ignore[arg-type]
        async for part in parts:
            parser.write(part)
            if draft.wants_writing:
                await asyncio.to_thread(draft.write)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"The form cannot be read: {error}") from None
    if not reader.ended:
        raise InvalidRequest("The form ends before its last boundary.")
    return reader.form
