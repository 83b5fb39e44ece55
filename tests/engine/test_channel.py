"""The line to a core: it ends when we say so, whatever the core does."""

from __future__ import annotations

import asyncio
import socket

from octavo.engine.channel import Abort, Channel


def test_a_line_that_the_core_does_not_read_is_closed_at_once():
    async def play():
        ours, theirs = socket.socketpair()
        with theirs:
            channel = await Channel.open(ours)
            channel.send(Abort("long" * 2**20))  # more than the kernel holds
            channel.close()
            channel.close()
            await channel.wait_closed()
            assert ours.fileno() == -1
            channel.send(Abort("too late"))

    asyncio.run(asyncio.wait_for(play(), 60))
