"""A form is the same however it arrives: cut anywhere, with anything in its file."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.api.batch.files import Draft
from octavo.api.batch.multipart import Form, read_form
from octavo.errors import InvalidRequest

BOUNDARY = "b"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
#: Pieces that look like what ends a part.
NEARLY = st.sampled_from([b"\r\n", b"--", b"\r\n--", b"\r\n--b", b"--b--", b"\r", b"\n", b"b", b"\r\n-", b"\0\xff"])


def read(parts: list[bytes], most: int = 10**6) -> tuple[Form, bytes]:
    async def arrive() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    with tempfile.TemporaryDirectory() as folder, Draft(Path(folder) / "draft") as draft:
        form = asyncio.run(read_form(CONTENT_TYPE, arrive(), draft, most))
        draft.finish()
        return form, draft.path.read_bytes()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def form(content: bytes, fields: dict[str, str]) -> bytes:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f.jsonl"\r\nContent-Type: text/plain\r\n\r\n'
    return b"".join([*parts, head, content, b"\r\n--b--\r\n"])


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.one_of(NEARLY, st.binary(max_size=8)), max_size=20).map(b"".join),
    st.dictionaries(
        st.sampled_from(["purpose", "expires_after[anchor]", "x"]), st.text("abc-", max_size=9), max_size=3
    ),
    st.lists(st.integers(0, 10**6), max_size=12),
)
def test_a_form_is_the_same_however_it_is_cut(content: bytes, fields: dict[str, str], places: list[int]) -> None:
    if b"\r\n--b" in b"\r\n" + content + b"\r\n":
        return  # that would be the end of the part
    found, stored = read(cut(form(content, fields), places))
    assert stored == content
    assert found == Form(fields, "f.jsonl")


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(NEARLY, st.binary(max_size=30)), max_size=30).map(b"".join), st.integers(0, 200), st.data())
def test_nonsense_is_refused_and_nothing_else_happens(noise: bytes, place: int, data: st.DataObject) -> None:
    whole = form(b"content", {"purpose": "batch"})
    start = data.draw(st.integers(0, len(whole)))
    broken = whole[:start] + noise + whole[start + place :]
    try:
        found, stored = read(cut(broken, [place, start]), most=100)
    except InvalidRequest:
        return
    assert len(stored) <= 100
    assert sum(map(len, found.fields.values())) <= len(broken)
