"""Who may come in. With keys set, every path needs one except the three probes; without, web pages need to be known.

The decision about keys looks at the raw `scope["path"]` and at nothing a router or proxy has rewritten. Whose key it is
stands in `scope["state"]["tenant"]` afterwards; the key itself goes nowhere.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.api.keys import Keyring
from octavo.api.tenants import Tenant
from octavo.api.wire import error_response
from octavo.errors import Forbidden, Unauthorized

OPEN_PATHS = ("/live", "/ready", "/health")


class BearerAuth:
    def __init__(self, app: ASGIApp, keys: Keyring, root_path: str = "") -> None:
        self.app = app
        self.keys = keys
        self.open_paths = frozenset((*OPEN_PATHS, *(root_path + path for path in OPEN_PATHS)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.open_paths:
            tenant = self._tenant(scope)
            if tenant is None:
                error = Unauthorized("Missing or wrong API key. Send it in the header `Authorization: Bearer KEY`.")
                await error_response(error)(scope, receive, send)
                return
            scope["state"]["tenant"] = tenant
        await self.app(scope, receive, send)

    def _tenant(self, scope: Scope) -> Tenant | None:
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) != 1:
            return None
        scheme, _, key = values[0].partition(b" ")
        tenant = self.keys.find(key.strip())
        return tenant if scheme.lower() == b"bearer" and key.strip() else None


class KnownOrigins:
    """For a server without keys: a page that points its own name at this machine is no user of it.

    To a browser such a page and the server are one origin, so CORS does not apply; but it says whose page it is.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self.app = app
        self.origins = {origin.encode() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and b"*" not in self.origins:
            unknown = [value for name, value in scope["headers"] if name == b"origin" and value not in self.origins]
            if unknown:
                error = Forbidden(
                    "Pages of this web origin may not use the server; --allowed-origins names those that may."
                )
                await error_response(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)
