"""The HTTP server: a bound socket, uvicorn underneath, and a shutdown that leaves no request without an answer.

Signals, engines and what is printed are the caller's business.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from octavo.api.connection import Connection
from octavo.api.desk import Desk
from octavo.api.limits import possible_connections
from octavo.config import ServerConfig
from octavo.errors import ConfigError

logger = logging.getLogger("octavo.api")

_CLOSE_SECONDS = 1.0  # for what is left to be said when the time to finish is over


def bind(config: ServerConfig) -> socket.socket:
    """The socket to listen on, reserved before anything slow begins; TLS files are tried too. Raises ConfigError."""
    if config.ssl_certfile and config.ssl_keyfile:
        _check_tls(config.ssl_certfile, config.ssl_keyfile)
    return _bind_unix(config.uds) if config.uds else _bind_tcp(config.host, config.port)


def bind_admin(config: ServerConfig) -> socket.socket | None:
    """The socket of the admin port, if there is to be one. Raises ConfigError."""
    return None if config.admin_port is None else _bind_tcp(config.admin_host, config.admin_port, "--admin-port")


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


def _bind_tcp(host: str, port: int, flag: str = "--port") -> socket.socket:
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
            raise ConfigError(f"port {port} on {host} is already in use; choose another with {flag}") from None
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
        self._limits = replace(desk.limits, connections=possible_connections(desk.limits.connections))
        super().__init__(self._face(app, config))
        admin = app.state.admin
        self._faces = [self.config] if admin is None else [self.config, self._face(admin, config)]
        self.listening = asyncio.Event()
        self._peers: set[Connection] = set()  # on the public port
        self._full = False

    def _face(self, app: Starlette, config: ServerConfig) -> uvicorn.Config:
        """How uvicorn serves an app on one port."""
        return uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # octavo's own log says it better
            access_log=False,
            proxy_headers=False,
            server_header=False,
            root_path=config.root_path,
            timeout_keep_alive=self._limits.keep_alive_seconds,
            ssl_keyfile=config.ssl_keyfile,
            ssl_certfile=config.ssl_certfile,
        )

    async def run_on(self, listener: socket.socket, admin: socket.socket | None = None) -> None:
        """Serve on sockets from `bind` and `bind_admin` until stopped and drained."""
        await self.serve([listener] if admin is None else [listener, admin])

    def stop(self) -> None:
        """Accept no new requests, give those in flight `shutdown_seconds`, then end them with an error."""
        self.desk.drain()
        self.should_exit = True

    def stop_now(self) -> None:
        self.stop()
        self.force_exit = True
        for task in self.server_state.tasks:
            task.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.servers = []
        counted: list[tuple[set[Connection], int]] = [
            (self._peers, self._limits.connections),
            (set(), self._limits.admin_connections),  # of its own: a crowd at one door does not close the other
        ]
        for face, listener, (peers, most) in zip(self._faces, sockets or (), counted, strict=False):
            if not face.loaded:
                face.load()
            connect = functools.partial(
                Connection,
                config=face,
                server_state=self.server_state,
                app_state={},
                limits=self._limits,
                traffic=self.desk.traffic,
                peers=peers,
                most=most,
            )
            self.servers.append(await loop.create_server(connect, sock=listener, ssl=face.ssl, backlog=face.backlog))
        self.started = True
        self.listening.set()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: time to end?"""
        full = len(self._peers) >= self._limits.connections
        if full and not self._full:  # said when it begins, not for each that is refused
            logger.warning("%d connections are open; more are refused", self._limits.connections)
        self._full = full
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process's signals are not ours

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what comes while accepted requests finish, end those that do not, then close."""
        with suppress(asyncio.TimeoutError):
            async with asyncio.timeout(self._limits.shutdown_seconds):
                await self.desk.idle()
                await self._tasks_end()
        for task in self.server_state.tasks:
            task.cancel()
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._tasks_end()  # cancelled requests still tell their clients why
        with suppress(asyncio.TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self.server_state.connections:
                    await asyncio.sleep(0.01)
        for connection in self.server_state.connections:
            connection.transport.abort()  # it does not read what we have sent

    async def _tasks_end(self) -> None:
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_CLOSE_SECONDS)
