"""The HTTP server: a bound socket, uvicorn underneath, and a shutdown that leaves no request without an answer.

Signals, engines and what is printed are the caller's business.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import math
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from octavo.api.connection import Connection
from octavo.api.desk import Desk
from octavo.config import ServerConfig
from octavo.errors import ConfigError


def bind(config: ServerConfig) -> socket.socket:
    """The socket to listen on, reserved before anything slow begins; TLS files are tried too. Raises ConfigError."""
    if config.ssl_certfile and config.ssl_keyfile:
        _check_tls(config.ssl_certfile, config.ssl_keyfile)
    return _bind_unix(config.uds) if config.uds else _bind_tcp(config.host, config.port)


def _check_tls(certfile: str, keyfile: str) -> None:
    files = f"--ssl-certfile {certfile} and --ssl-keyfile {keyfile}"

    def ask_password() -> str:  # without this, OpenSSL would ask whoever sits at the terminal
        raise ConfigError(f"the private key {keyfile} is encrypted; octavo needs it without a passphrase")

    try:
        for path in (certfile, keyfile):
            with Path(path).open("rb"):
                pass  # OpenSSL does not say which of the two cannot be read
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, ask_password)
    except ssl.SSLError as error:
        why = f" ({error.reason})" if error.reason else ""
        raise ConfigError(f"{files} are no certificate chain and its private key, in PEM form{why}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None


def _bind_tcp(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ConfigError(f"cannot listen on host {host!r}: {error.strerror}") from None
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()  # from here on a second server is told that the port is taken
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} on {host} is already in use; choose another with --port") from None
        raise ConfigError(f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}") from None
    return listener


def _bind_unix(path: str) -> socket.socket:
    """A socket that only this user may open; one that a dead server left behind is replaced."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        _clear(Path(path))
        previous = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(previous)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {path}: {os.strerror(error.errno or 0)}") from None
    except ConfigError:
        listener.close()
        raise
    return listener


def _clear(path: Path) -> None:
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise ConfigError(f"another server listens on {path}; choose another path with --uds")
        path.unlink()


class Server(uvicorn.Server):
    """Serves an app made by `build_app` until `stop` is called."""

    def __init__(self, app: Starlette, config: ServerConfig) -> None:
        desk = app.state.desk
        assert isinstance(desk, Desk)
        self.desk = desk
        limits = desk.limits
        super().__init__(
            uvicorn.Config(
                app,
                http=functools.partial(Connection, limits=limits),  # type: ignore[arg-type]
                ws="none",
                loop="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # octavo's own log says it better
                access_log=False,
                proxy_headers=False,
                server_header=False,
                root_path=config.root_path,
                timeout_keep_alive=limits.keep_alive_seconds,
                timeout_graceful_shutdown=math.ceil(limits.shutdown_seconds),
                ssl_keyfile=config.ssl_keyfile,
                ssl_certfile=config.ssl_certfile,
            )
        )
        self.listening = asyncio.Event()

    async def run_on(self, listener: socket.socket) -> None:
        """Serve on a socket from `bind` until stopped and drained."""
        await self.serve([listener])
        await self._unwind()

    def stop(self) -> None:
        """Accept nothing new, give requests in flight `shutdown_seconds`, then end them with an error."""
        self.desk.draining = True
        self.should_exit = True

    def stop_now(self) -> None:
        self.stop()
        self.force_exit = True
        for task in self.server_state.tasks:
            task.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process's signals are not ours

    async def _unwind(self) -> None:
        """Cancelled requests still tell their clients why."""
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=1.0)
        with suppress(asyncio.TimeoutError):
            async with asyncio.timeout(1.0):
                while self.server_state.connections:
                    await asyncio.sleep(0.01)
