"""Who may come in. With keys set, every path needs one except the three probes; without, web pages need to be known.

The decision about keys looks at the raw `scope["path"]` and at nothing a router or proxy has rewritten. Whose key it is
stands in `scope["state"]["tenant"]` afterwards; the key itself goes nowhere.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.api.dialect import error_response
from octavo.api.keys import Keyring
from octavo.api.tenants import Tenant
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
                await error_response(error, scope)(scope, receive, send)
                return
            scope["state"]["tenant"] = tenant
        await self.app(scope, receive, send)

    def _tenant(self, scope: Scope) -> Tenant | None:
        key = _key(scope)
        return self.keys.find(key) if key else None


def _key(scope: Scope) -> bytes:
    """The key that a request shows, as a bearer's or, as Anthropic's clients do, by itself; empty unless it is one."""
    bearers = [value for name, value in scope["headers"] if name == b"authorization"]
    shown = bearers or [b"bearer " + value for name, value in scope["headers"] if name == b"x-api-key"]
    if len(shown) != 1:
        return b""
    scheme, _, key = shown[0].partition(b" ")
    return bytes(key.strip()) if scheme.lower() == b"bearer" else b""


class KnownOrigins:
    """For a server without keys: a page that points its own name at this machine is no user of it.

    To a browser such a page and the server are one origin, so CORS does not apply. But the browser says whose page it
    is or, where the page only reads, by which name it has found the server: a name that others cannot point here.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str], hosts: Collection[str] = ()) -> None:
        self.app = app
        self.origins = {origin.encode() for origin in origins}
        self.hosts = {*(host.lower() for host in hosts), *filter(None, map(_hostname, origins))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and b"*" not in self.origins:
            error = self._unknown_origin(scope) or self._unknown_host(scope)
            if error is not None:
                await error_response(error, scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _unknown_origin(self, scope: Scope) -> Forbidden | None:
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        if all(origin in self.origins or _is_own(scope, origin) for origin in origins):
            return None
        return Forbidden("Pages of this web origin may not use the server; --allowed-origins names those that may.")

    def _unknown_host(self, scope: Scope) -> Forbidden | None:
        if scope["path"].removeprefix(scope.get("root_path", "")) in OPEN_PATHS or _on_unix_socket(scope):
            return None
        names = [_hostname(f"//{value.decode('latin-1')}") for name, value in scope["headers"] if name == b"host"]
        if all(name in self.hosts or _is_address(name) or _is_local(name) for name in names):
            return None
        return Forbidden(
            "A server without keys answers to IP addresses and local names, not to the one in this Host header. "
            "To allow a name: --allowed-origins http://NAME:PORT."
        )


def _is_own(scope: Scope, origin: bytes) -> bool:
    """Whether it is the server's own page, by the name that it was asked by: which names it has is another question."""
    scheme, _, place = origin.lower().partition(b"://")
    hosts = [value.lower() for name, value in scope["headers"] if name == b"host"]
    return hosts == [place] and scheme in ((b"https",) if scope["scheme"] == "https" else (b"http", b"https"))


def _on_unix_socket(scope: Scope) -> bool:
    server = scope.get("server")
    return server is None or server[1] is None


def _hostname(url: str) -> str:
    """In lower case; empty if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_local(host: str) -> bool:
    """Whether no stranger can have such a name looked up: of a container, say, or of a machine on this network."""
    return host != "" and ("." not in host or host.endswith((".localhost", ".local", ".internal")))


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
