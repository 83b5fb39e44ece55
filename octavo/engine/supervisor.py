"""Starts the core process, hands it its setup, and ends it. One core per engine."""

from __future__ import annotations

import asyncio

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.engine.channel import Channel
from octavo.processes import end, setup, start


class CoreProcess:
    """A core that was started; its channel carries everything else."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._process, self._connection = start("octavo.engine.core_process")

    async def open(self, checkpoint: Checkpoint) -> Channel:
        """Hand over the checkpoint; the core answers `Ready` or `Failed` once it is loaded."""
        channel = await Channel.open(self._connection)
        channel.send(setup(self._config, checkpoint))
        return channel

    async def end(self) -> int:
        """After the channel was closed: wait for the process, kill it if it hangs. Returns its exit code."""
        self._connection.close()
        return await asyncio.to_thread(end, self._process)
