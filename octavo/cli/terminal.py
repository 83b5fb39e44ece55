"""The terminal while an answer streams: what is typed meanwhile does not appear in it, and is there afterwards."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def without_echo() -> Iterator[None]:
    """No echo inside; Ctrl-C works as ever. Restored whatever happens, a SIGTERM included. Main thread only."""
    try:
        import termios

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (ImportError, OSError, ValueError, termios.error):  # no terminal, nothing to hide
        yield
        return

    def restore() -> None:
        with suppress(termios.error):  # the terminal itself may be gone
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)

    def die(number: int, _: object) -> None:
        restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    handlers = {number: signal.signal(number, die) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        termios.tcsetattr(terminal, termios.TCSADRAIN, [*before[:3], before[3] & ~termios.ECHO, *before[4:]])
        yield
    finally:
        restore()
        for number, handler in handlers.items():
            signal.signal(number, handler)
