"""Bearer keys, deny by default: with keys set, every path needs one except the three probes.

The decision looks at the raw `scope["path"]` and at nothing a router or proxy has rewritten. Keys are kept and compared
as SHA-256 digests in constant time, and never logged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.api.wire import error_response
from octavo.errors import Unauthorized

OPEN_PATHS = ("/live", "/ready", "/health")


class BearerAuth:
    def __init__(self, app: ASGIApp, keys: Sequence[str], root_path: str = "") -> None:
        self.app = app
        self.digests = [_digest(key.encode()) for key in keys]
        self.open_paths = frozenset((*OPEN_PATHS, *(root_path + path for path in OPEN_PATHS)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.open_paths and not self._authorized(scope):
            error = Unauthorized("Missing or wrong API key. Send it in the header `Authorization: Bearer KEY`.")
            await error_response(error)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _authorized(self, scope: Scope) -> bool:
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) != 1:
            return False
        scheme, _, key = values[0].partition(b" ")
        digest = _digest(key.strip())
        matches = [hmac.compare_digest(digest, known) for known in self.digests]  # all of them: no early exit
        return scheme.lower() == b"bearer" and bool(key.strip()) and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
