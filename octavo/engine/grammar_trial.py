"""Grammars are compiled here first: in a process of its own, which is killed when it takes too long or too much memory.

A grammar of a few hundred characters can keep a compiler busy for hours, and no thread can be stopped. What passes is
compiled again where it is used. `Trial` is the side that asks, and its module run as a program the one that tries.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.engine.guidance import PARAM, Grammars, refusal
from octavo.errors import InvalidRequest
from octavo.frames import FrameSocket
from octavo.processes import Setup, end, enter_child, settle, setup, start

_PATIENCE = 3.0  # seconds to compile one grammar, and to make its first mask
_LOAD_SECONDS = 120.0  # for the child to start and to know its model's vocabulary
_MEMORY = 2**30  # bytes of address space that a grammar may take
_MOST_GROWTH = 2**28  # bytes by which a child may grow before another takes its place


class Begin(Struct, frozen=True, tag=True):
    setup: Setup
    vocab_size: int


class Try(Struct, frozen=True, tag=True):
    text: str


class Verdict(Struct, frozen=True, tag=True):
    """complaint: why the grammar cannot be followed. retires: this child has had its time."""

    complaint: str | None = None
    retires: bool = False


class Trial:
    """Of one model's grammars. Belongs to one thread. The child is started when it is needed."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint, vocab_size: int) -> None:
        self._config, self._checkpoint, self._vocab_size = config, checkpoint, vocab_size
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, text: str) -> None:
        """Raises InvalidRequest for a grammar that cannot be followed, or not compiled within the limits."""
        if self._process is None:
            self._start()
        verdict = self._ask(Try(text), _PATIENCE)
        if verdict is None:
            raise refusal(f"compiling it takes more than {_PATIENCE:g} s or {_MEMORY >> 20} MiB")
        if verdict.retires:
            self._stop()
        if verdict.complaint is not None:
            raise InvalidRequest(verdict.complaint, param=PARAM, code="invalid_value")

    def _start(self) -> None:
        self._process, self._connection = start("octavo.engine.grammar_trial")
        self._link: FrameSocket[Verdict] = FrameSocket(self._connection, Verdict)
        ready = self._ask(Begin(setup(self._config, self._checkpoint), self._vocab_size), _LOAD_SECONDS)
        if ready is None:
            raise RuntimeError("the process that tries grammars did not start")

    def _ask(self, message: Begin | Try, patience: float) -> Verdict | None:
        """None, and the child is gone, if it does not answer in time."""
        try:
            self._connection.settimeout(patience)
            self._link.send(message)
            return self._link.receive()
        except (TimeoutError, EOFError, ConnectionError):
            self._stop()
            return None

    def _stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        with suppress(OSError):
            self._link.close()
        end(self._process)
        self._process = None


def main(descriptor: int) -> None:
    link: FrameSocket[Begin | Try] = FrameSocket(enter_child(descriptor), Begin | Try)
    with suppress(EOFError, ConnectionError):
        serve(link)


def serve(link: FrameSocket[Begin | Try]) -> None:
    """A verdict for each grammar. Raises EOFError or ConnectionError when the other side is gone."""
    from octavo.engine.tokenizer import Tokenizer

    first = link.receive()
    assert isinstance(first, Begin)
    settle(first.setup)
    config, checkpoint = first.setup.config, first.setup.checkpoint
    grammars = Grammars(lambda: Tokenizer.from_checkpoint(checkpoint, config.model.tokenizer), first.vocab_size)
    grammars.load()
    resource.setrlimit(resource.RLIMIT_AS, (_memory(0) + _MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = _memory(1)
    link.send(Verdict())
    while True:
        asked = link.receive()
        assert isinstance(asked, Try)
        complaint = None
        try:
            grammars.make(asked.text)
        except InvalidRequest as error:
            complaint = error.message
        link.send(Verdict(complaint, retires=_memory(1) - before > _MOST_GROWTH))


def _memory(which: int) -> int:
    """0: this process's address space; 1: what of it is in memory."""
    return int(Path("/proc/self/statm").read_text().split()[which]) * resource.getpagesize()


if __name__ == "__main__":
    main(int(sys.argv[1]))
