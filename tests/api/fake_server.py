"""The real HTTP server on a free port, in front of a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from fake_engine import FakeEngine
from one_model import OneModel

from octavo.api.app import build_app
from octavo.api.limits import Limits
from octavo.api.server import Server, bind
from octavo.config import ServerConfig


@asynccontextmanager
async def serving(
    engine: FakeEngine | None = None, limits: Limits | None = None, **options: Any
) -> AsyncIterator[tuple[Server, int]]:
    config = ServerConfig(port=0, **options)
    server = Server(build_app(OneModel(engine or FakeEngine()), config, limits), config)
    listener = bind(config)
    port = 0 if config.uds else listener.getsockname()[1]
    task = asyncio.create_task(server.run_on(listener))
    batch = server.desk.batch
    running = asyncio.create_task(batch.run()) if batch else None
    await server.listening.wait()
    try:
        yield server, port
    finally:
        server.stop_now()
        await task
        if running is not None:
            running.cancel()
            await asyncio.wait({running})
            batch.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), 120))  # type: ignore[arg-type]
