"""The terminal while an answer streams: what is typed meanwhile does not appear in it, and is there afterwards."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]


@contextmanager
def without_echo() -> Iterator[None]:
    """No echo inside; Ctrl-C works as ever. Restored whatever happens, a SIGTERM included. Main thread only."""
    terminal = _own_terminal()
    if terminal is None:  # nothing to hide
        yield
        return
    before = termios.tcgetattr(terminal)

    def restore() -> None:
        # The terminal may be gone, or another program's by now: setting it from the background stops this one.
        with suppress(OSError, termios.error):
            if _in_foreground(terminal):
                termios.tcsetattr(terminal, termios.TCSADRAIN, before)

    def die(number: int, _: object) -> None:
        restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    mine = [number for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)]  # nohup ignores
    for number in mine:
        signal.signal(number, die)
    try:
        termios.tcsetattr(terminal, termios.TCSADRAIN, [*before[:3], before[3] & ~termios.ECHO, *before[4:]])
        yield
    finally:
        restore()
        for number in mine:
            signal.signal(number, handlers[number])


def _own_terminal() -> int | None:
    """The terminal on stdin, if it is this program's to set."""
    if termios is None or sys.stdin is None:
        return None
    with suppress(OSError, ValueError):  # no terminal, a closed file
        terminal = sys.stdin.fileno()
        return terminal if os.isatty(terminal) and _in_foreground(terminal) else None
    return None


def _in_foreground(terminal: int) -> bool:
    """Whether setting the terminal does not stop this program."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # not the terminal that controls this program: nothing stops it
        return True
