"""The web page: files that anybody may read, answered in front of everything else; the page's data comes from the API.

A browser gets the page at `/`, a program the JSON that it always got there; what the page is made of lies below
`/page/`. The files are read once and know nothing of keys, models or this server, so they need no key. What a browser
must not do with them stands in `_HEADERS`.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

_FOLDER = Path(__file__).parent / "web"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
_HEADERS = {
    "cache-control": "no-cache",  # ask each time whether it is still the same
    "content-security-policy": _POLICY,
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "vary": "accept, accept-encoding",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    packed: bytes
    headers: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> File:
        content = path.read_bytes()
        tag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'  # weak: packed or not
        headers = {**_HEADERS, "etag": tag, "content-type": _MEDIA_TYPES[path.suffix]}
        return cls(content, gzip.compress(content, mtime=0), headers)

    def answer(self, asked: Headers) -> Response:
        """The file, unless the browser has it."""
        if self.headers["etag"] in {tag.strip() for tag in asked.get("if-none-match", "").split(",")}:
            headers = {name: value for name, value in self.headers.items() if name != "content-type"}
            return Response(status_code=304, headers=headers)
        if "gzip" in asked.get("accept-encoding", ""):
            return Response(self.packed, headers={**self.headers, "content-encoding": "gzip"})
        return Response(self.content, headers=self.headers)


class Page:
    """An ASGI layer: answers with the page and its files, and passes everything else on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._files = {path.name: File.read(path) for path in _FOLDER.iterdir() if path.suffix in _MEDIA_TYPES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answer(scope) if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") else None
        await (answer or self.app)(scope, receive, send)

    def _answer(self, scope: Scope) -> Response | None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        headers = Headers(scope=scope)
        if path == "/" and _reads_pages(headers):
            scope["state"]["path"] = "/"
            return self._files["index.html"].answer(headers)
        folder, _, name = path.rpartition("/")
        if folder != "/page" or name not in self._files:
            return None
        scope["state"]["path"] = "/page"
        return self._files[name].answer(headers)


def _reads_pages(headers: Headers) -> bool:
    """Whether a browser asks, which shows pages to people; programs take JSON, or anything."""
    accepted = headers.get("accept", "").lower()
    return "text/html" in accepted and "application/json" not in accepted
