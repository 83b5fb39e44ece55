"""A server and its models together, from the bound socket to the last answered request.

/live answers while models load. What ends the server decides its exit status: 0 for a signal, 1 for the only engine
that could not start or died. Where there may be several models, the end of one is not the end of the server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from typing import Any

from octavo import __version__
from octavo.api.app import build_app
from octavo.api.server import Server
from octavo.config import ServerConfig
from octavo.face import Engine
from octavo.metrics import Metrics, Throughput
from octavo.repository.declared import Declared
from octavo.repository.names import listed
from octavo.repository.repository import Loader, Repository
from octavo.repository.watching import Watch

logger = logging.getLogger("octavo.api")

_THROUGHPUT_SECONDS = 10.0


async def serve(
    source: Declared | Watch,
    server_config: ServerConfig,
    listener: socket.socket,
    admin: socket.socket | None = None,
    loader: Loader | None = None,
) -> int:
    """Until a signal (0) or until the only engine is gone (1)."""
    declared = source.declared if isinstance(source, Watch) else source
    models = Repository(declared, loader)
    app = build_app(models, server_config)
    server = Server(app, server_config)
    stop_on_signals(server)
    url = address(server_config, listener)
    logger.info("octavo %s listens on %s; loading %s", __version__, url, _sources(declared))
    if admin is not None:
        logger.info("the admin port is %s", tcp_address(server_config, admin))
    beside = [
        in_background(welcome(models, server_config, url), "the server did not introduce itself"),
        in_background(report_throughput(models), "throughput is no longer logged"),
    ]
    if app.state.keys:
        beside.append(in_background(app.state.keys.watch(), "the file of keys is no longer watched"))
    if isinstance(source, Watch):
        beside.append(in_background(source.run(models.declare), "the declared models are no longer watched"))
    batch = app.state.desk.batch
    running = in_background(batch.run(), "batches are no longer run") if batch else None
    serving = asyncio.create_task(server.run_on(listener, admin))
    models.open()
    try:
        ends: set[asyncio.Future[Any]] = {serving, models.fate}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not models.fate.done():
            return 0
        sys.stderr.write(f"octavo: {models.fate.result().message}\n")
        return 1
    finally:
        server.stop()
        await serving
        if running is not None:
            running.cancel()
            await asyncio.wait({running})
            batch.close()
        for task in beside:
            task.cancel()
        await models.close()
        if app.state.tracing is not None:
            await asyncio.to_thread(app.state.tracing.close)


def _sources(declared: Declared) -> str:
    if declared.only:
        (model,) = declared.models.values()
        (config,) = model.versions.values()
        return config.model.model or "the default model"
    return listed(declared.models)


async def welcome(models: Repository, server_config: ServerConfig, url: str) -> None:
    """Say on stdout where the server is, once it can be asked."""
    await models.started()
    if not models.fate.done():
        sys.stdout.write(introduction(models, server_config, url) + "\n")
        sys.stdout.flush()


async def report_throughput(models: Repository) -> None:
    """A line in the log for each engine every few seconds while there is something to say."""
    throughputs: dict[Metrics, Throughput] = {}
    while True:
        now = time.monotonic()
        of_engines = [engine.metrics for engine in models.engines()]
        throughputs = {metrics: throughputs.get(metrics) or Throughput(metrics, now) for metrics in of_engines}
        await asyncio.sleep(_THROUGHPUT_SECONDS)
        for metrics, throughput in throughputs.items():
            if (line := throughput.line(time.monotonic())) is not None:
                logger.info("%s%s", "" if models.declared.only else f"{metrics.name}: ", line)


def in_background(work: Coroutine[None, None, None], loss: str) -> asyncio.Task[None]:
    """A task that nobody awaits; the log has `loss` if it fails."""

    def log_failure(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(loss, exc_info=error)

    task = asyncio.create_task(work)
    task.add_done_callback(log_failure)
    return task


def stop_on_signals(server: Server) -> None:
    """The first SIGINT or SIGTERM drains, the second does not wait."""

    def stop() -> None:
        if server.should_exit:
            server.stop_now()
        else:
            logger.info("shutting down; requests in flight have %g s to finish", server.desk.limits.shutdown_seconds)
            server.stop()

    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop)


def address(config: ServerConfig, listener: socket.socket) -> str:
    if config.uds:
        return f"unix:{config.uds}"
    return tcp_address(config, listener)


def tcp_address(config: ServerConfig, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if config.ssl_certfile else 'http'}://{shown}:{port}"


def introduction(models: Repository, config: ServerConfig, url: str) -> str:
    """What stands in the terminal once requests are answered: where, what, and how to try it."""
    known = models.known()
    name = known[0].name
    path, body = _example(next((engine for engine in models.engines() if engine.ready), None), name)
    target = f"--unix-socket {config.uds} http://octavo{path}" if config.uds else url + path
    key = ' -H "Authorization: Bearer $KEY"' if config.api_key or config.api_key_file else ""
    if models.declared.only:
        what = f"{name} on {url} (context {known[0].max_model_len} tokens)"
    else:
        what = f"{listed(models.declared.models)} on {url}"
    return (
        f"octavo {__version__} serves {what}\n"
        f"  curl {target} -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'"
    )


def _example(engine: Engine | None, name: str) -> tuple[str, dict[str, Any]]:
    """A path and a body of what the model is for."""
    if engine is None:
        return "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "Hello!"}]}
    if "embed" in engine.ability.tasks and "generate" not in engine.ability.tasks:
        return "/v1/embeddings", {"model": name, "input": "How do I bake bread?"}
    if "generate" not in engine.ability.tasks:
        return "/v1/score", {"model": name, "text_1": "How do I bake bread?", "text_2": "Knead the dough."}
    if engine.config.model.chat_template or engine.tokenizer.chat_template:
        return "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "Hello!"}]}
    return "/v1/completions", {"model": name, "prompt": "Once upon a time"}
