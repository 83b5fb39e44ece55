"""Child processes of octavo: started over a socket pair, handed their setup, reporting ready or why not.

A child inherits one end of the pair and ends when it closes, so none outlives its parent. Everything on the wire is
data of `octavo.frames`; a child is a module run by the same interpreter, so no code travels.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys

from msgspec import Struct

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.errors import CheckpointError, ConfigError, EngineDead, OctavoError
from octavo.plan import Capacity

_CLOSE_SECONDS = 5.0
LOG_FORMAT = "%(levelname)s %(message)s"


class Setup(Struct, frozen=True, tag=True):
    """The first message a child receives."""

    config: EngineConfig
    checkpoint: Checkpoint
    log_level: str


class Ready(Struct, frozen=True, tag=True):
    """The child's model is loaded."""

    capacity: Capacity


class Failed(Struct, frozen=True, tag=True):
    """The child could not start."""

    error: str
    message: str

    @classmethod
    def of(cls, error: OctavoError) -> Failed:
        return cls(type(error).__name__, error.message)

    def exception(self) -> OctavoError:
        """The child's error, in this process."""
        known: dict[str, type[OctavoError]] = {"ConfigError": ConfigError, "CheckpointError": CheckpointError}
        return known.get(self.error, EngineDead)(self.message)


def setup(config: EngineConfig, checkpoint: Checkpoint) -> Setup:
    return Setup(config, checkpoint, logging.getLevelName(logging.getLogger("octavo").getEffectiveLevel()))


def start(module: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run `python -m module FD`; returns the process and our end of the socket pair."""
    ours, theirs = socket.socketpair()
    with theirs:
        # Isolated from the folder the user happens to be in: no module there can shadow ours.
        command = [sys.executable, "-P", "-m", module, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)  # noqa: S603 (our own module)
    return process, ours


def end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a child whose socket was closed; kill it if it does not go. Returns its exit code."""
    try:
        return process.wait(_CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def enter_child(descriptor: int) -> socket.socket:
    """What every child does first: leave Ctrl-C to its parent, and take its end of the socket pair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return socket.socket(fileno=descriptor)


def configure_logging(level: str) -> None:
    """octavo's own lines on stderr at this level; libraries' from warning on."""
    logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT)
    logging.getLogger("octavo").setLevel(level.upper())
