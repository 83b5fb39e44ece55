"""A server and its engine together, from the bound socket to the last answered request.

/live answers while the model loads. What ends the server decides its exit status: 0 for a signal, 1 for an engine that
could not start or died.
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
from octavo.api.served import OneModel
from octavo.api.server import Server
from octavo.config import EngineConfig, ServerConfig
from octavo.engine.async_engine import AsyncLLMEngine
from octavo.errors import OctavoError
from octavo.metrics import Throughput

logger = logging.getLogger("octavo.api")

_THROUGHPUT_SECONDS = 10.0


async def serve(
    config: EngineConfig, server_config: ServerConfig, listener: socket.socket, admin: socket.socket | None = None
) -> int:
    """Until a signal (0) or until the engine is gone (1)."""
    model = OneModel()
    app = build_app(model, server_config)
    server = Server(app, server_config)
    stop_on_signals(server)
    url = address(server_config, listener)
    logger.info("octavo %s listens on %s; loading %s", __version__, url, config.model.model or "the default model")
    if admin is not None:
        logger.info("the admin port is %s", tcp_address(server_config, admin))
    watching = (
        in_background(app.state.keys.watch(), "the file of keys is no longer watched") if app.state.keys else None
    )
    batch = app.state.desk.batch
    running = in_background(batch.run(), "batches are no longer run") if batch else None
    serving = asyncio.create_task(server.run_on(listener, admin))
    engine_life = asyncio.create_task(run_engine(config, model, server_config, url))
    try:
        await asyncio.wait({serving, engine_life}, return_when=asyncio.FIRST_COMPLETED)
        if not engine_life.done():
            return 0
        death = engine_life.result()
        sys.stderr.write(f"octavo: {death.message}\n")
        return 1
    finally:
        server.stop()
        await serving
        if running is not None:
            running.cancel()
            await asyncio.wait({running})
            batch.close()
        if app.state.tracing is not None:
            await asyncio.to_thread(app.state.tracing.close)
        engine_life.cancel()
        if watching is not None:
            watching.cancel()
        await asyncio.wait({engine_life})


async def run_engine(config: EngineConfig, model: OneModel, server_config: ServerConfig, url: str) -> OctavoError:
    """Start the engine, put it behind the desk, wait for its end; why it ended."""
    try:
        engine = await AsyncLLMEngine.start(config)
    except OctavoError as error:
        return error
    try:
        model.engine = engine
        await engine.wait_ready()
        logger.info("%s is ready", engine.checkpoint.name)
        sys.stdout.write(welcome(engine, server_config, url) + "\n")
        sys.stdout.flush()
        reporting = in_background(report_throughput(engine), "throughput is no longer logged")
        try:
            return await engine.wait_dead()
        finally:
            reporting.cancel()
    except OctavoError as error:
        return error
    finally:
        await engine.shutdown()


async def report_throughput(engine: AsyncLLMEngine) -> None:
    """A line in the log every few seconds while there is something to say."""
    throughput = Throughput(engine.metrics, time.monotonic())
    while True:
        await asyncio.sleep(_THROUGHPUT_SECONDS)
        if (line := throughput.line(time.monotonic())) is not None:
            logger.info(line)


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


def welcome(engine: AsyncLLMEngine, config: ServerConfig, url: str) -> str:
    """What stands in the terminal once requests are answered: where, what, and how to try it."""
    name = (engine.config.model.served_model_name or (engine.checkpoint.name,))[0]
    path, body = _example(engine, name)
    target = f"--unix-socket {config.uds} http://octavo{path}" if config.uds else url + path
    key = ' -H "Authorization: Bearer $KEY"' if config.api_key or config.api_key_file else ""
    return (
        f"octavo {__version__} serves {name} on {url} (context {engine.max_model_len} tokens)\n"
        f"  curl {target} -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'"
    )


def _example(engine: AsyncLLMEngine, name: str) -> tuple[str, dict[str, Any]]:
    """A path and a body of what the model is for."""
    if "embed" in engine.ability.tasks and "generate" not in engine.ability.tasks:
        return "/v1/embeddings", {"model": name, "input": "How do I bake bread?"}
    if "generate" not in engine.ability.tasks:
        return "/v1/score", {"model": name, "text_1": "How do I bake bread?", "text_2": "Knead the dough."}
    if engine.config.model.chat_template or engine.tokenizer.chat_template:
        return "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "Hello!"}]}
    return "/v1/completions", {"model": name, "prompt": "Once upon a time"}
