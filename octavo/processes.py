"""Child processes of octavo: started over a socket pair, handed their setup, reporting ready or why not.

A child inherits one end of the pair and ends when it closes, in the middle of a step if need be; the kernel ends one
that cannot. So none outlives its parent. Everything on the wire is data of `octavo.frames`; a child is a module run by
the same interpreter, so no code travels.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

from msgspec import Struct

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig, LogFormat
from octavo.errors import CheckpointError, ConfigError, EngineDead, OctavoError
from octavo.logs import configure_logging, log_format
from octavo.plan import Capacity

STACK_SIGNAL = signal.SIGUSR1  # a child writes its stack to stderr
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_CLOSE_SECONDS = 5.0
_LEAVE_SECONDS = 1.0  # for a child to end by itself when its parent is gone


class Setup(Struct, frozen=True, tag=True):
    """The first message a child receives."""

    config: EngineConfig
    checkpoint: Checkpoint
    log_level: str
    log_format: LogFormat
    tied: bool  # the thread that started the child lives as long as its process


class Ready(Struct, frozen=True, tag=True):
    """The child's model is loaded."""

    capacity: Capacity
    pid: int | None = None


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
    level = logging.getLevelName(logging.getLogger("octavo").getEffectiveLevel())
    return Setup(config, checkpoint, level, log_format(), tied=threading.current_thread() is threading.main_thread())


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
    """What every child does first: leave signals to end to its parent, who may let requests finish; be ready to tell
    where it stands; take its end of the socket pair, and watch it."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(STACK_SIGNAL, all_threads=True)
    os.set_inheritable(descriptor, False)  # a child of this child would keep the line open
    threading.Thread(target=_leave_with_parent, args=(descriptor,), daemon=True).start()
    return socket.socket(fileno=descriptor)


def settle(setup: Setup) -> None:
    """What every child does when it knows its setup."""
    configure_logging(setup.log_level, setup.log_format)
    if setup.tied:  # the kernel means the thread: one that ends early would take its child along
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _leave_with_parent(descriptor: int) -> None:
    """The program's own loop sees the end of the line too, but not before a step is done, which may take long."""
    hangup = select.poll()
    hangup.register(descriptor, 0)  # hang-ups are always reported
    hangup.poll()
    time.sleep(_LEAVE_SECONDS)
    os._exit(1)
