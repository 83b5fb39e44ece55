"""A running server, as the verbs that speak to one see it: JSON in and out, errors as sentences that say what to do.

Streams of events are `event_client`'s.
"""

from __future__ import annotations

import argparse
import http.client
import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlsplit

from octavo import env
from octavo.cli.flags import Parser
from octavo.errors import (
    ConfigError,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    OctavoError,
    Overloaded,
    Unauthorized,
)

DEFAULT_URL = "http://127.0.0.1:8080"
_PATIENCE_S = 30.0


class NoServer(ConfigError):
    """Nobody listens there, or nobody who speaks HTTP."""


def add_server_flags(parser: Parser) -> None:
    parser.add_argument(
        "--url",
        default=DEFAULT_URL,
        metavar="URL",
        help="the server; a key for it is taken from the environment variable OCTAVO_API_KEY (default: %(default)s)",
    )


class Server:
    """Where it is and who asks. Raises ConfigError for what is no URL."""

    def __init__(self, url: str, key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url {url!r} is not an address such as {DEFAULT_URL}")
        self.url = parts._replace(path=parts.path.rstrip("/").removesuffix("/v1"), query="", fragment="").geturl()
        self.headers = {"authorization": f"Bearer {key}"} if key else {}

    @classmethod
    def of(cls, options: argparse.Namespace) -> Server:
        return cls(options.url, env.API_KEY)

    def get(self, path: str, patience_s: float = _PATIENCE_S) -> Any:
        return self._ask(urllib.request.Request(self.url + path, headers=self.headers), patience_s)  # noqa: S310

    def post(self, path: str, body: Any = None, patience_s: float = _PATIENCE_S) -> Any:
        headers = {**self.headers, "content-type": "application/json"}
        data = json.dumps({} if body is None else body).encode()
        return self._ask(urllib.request.Request(self.url + path, data, headers), patience_s)  # noqa: S310

    def _ask(self, request: urllib.request.Request, patience_s: float) -> Any:
        """Raises NoServer, or what the server's answer stands for."""
        try:
            with urllib.request.urlopen(request, timeout=patience_s) as answer:  # noqa: S310 (the user's own URL)
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise self.refusal(error.code, error.read(65536)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise NoServer(
                f"no answer from a server at {self.url} ({reason}); octavo serve starts one, --url names another"
            ) from None

    def refusal(self, status: int, body: bytes) -> OctavoError:
        """The error that an answer with this status stands for."""
        message, code = said(body)
        message = message or f"the server at {self.url} answered with HTTP status {status}"
        if status == 401:
            return Unauthorized(f"the server at {self.url} asks for a key: set OCTAVO_API_KEY to one it knows")
        if status == 403:
            return Forbidden(f"{message.rstrip('.')}. The key in OCTAVO_API_KEY has to be an admin's for this")
        kind = {400: InvalidRequest, 404: ModelNotFound, 429: Overloaded, 503: Overloaded}.get(status, OctavoError)
        return kind(message, code=code)


def said(body: bytes) -> tuple[str | None, str | None]:
    """Message and code of an error object, in OpenAI's form or Ollama's."""
    try:
        error = json.loads(body)["error"]
        found = (error["message"], error.get("code")) if isinstance(error, dict) else (error, None)
    except (ValueError, LookupError, TypeError):
        return None, None
    message, code = (each if isinstance(each, str) else None for each in found)
    return message, code


def in_path(name: str) -> str:
    """A model's name as a part of a URL."""
    return quote(name, safe="/")
