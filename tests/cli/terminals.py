"""A program on a terminal of its own, with somebody who types."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PATIENCE_S = 60.0  # before a program that says nothing is given up
_AGAIN_S = 3.0  # before Ctrl-C is typed again: readline does not hear one between its prompt and its wait for keys
#: Signals of a terminal are heard, also where whoever runs the tests ignores them, as shells' background jobs do.
_BEGIN = """
import fcntl, os, signal, sys, termios
for each in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    signal.signal(each, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True)
class Shown:
    status: int
    text: str  # with the terminal's own line ends and controls


def on_a_terminal(
    command: Sequence[str],
    script: Sequence[tuple[str, str]] = (),
    *,
    env: Mapping[str, str] | None = None,
    columns: int = 80,
) -> Shown:
    """Run it to its end. `script`: what is typed after which text has appeared, one after another.

    Control characters are for a program that waits at a prompt: a terminal takes them as its own before.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    program = subprocess.Popen(
        [command[0], "-c", _BEGIN, *command], stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
    )
    os.close(slave)
    text, seen, steps, typed, silent = "", 0, list(script), "", 0.0
    try:
        while silent < _PATIENCE_S:
            if not select.select([master], [], [], _AGAIN_S)[0]:
                silent += _AGAIN_S
                if typed == "\x03":
                    os.write(master, typed.encode())
                continue
            silent = 0.0
            try:
                data = os.read(master, 65536)
            except OSError:  # its last reader left
                break
            text += data.decode(errors="replace")
            while steps and (place := text.find(steps[0][0], seen)) >= 0:
                seen = place + len(steps[0][0])
                typed = steps.pop(0)[1]
                os.write(master, typed.encode())
        return Shown(program.wait(_PATIENCE_S), text)
    finally:
        program.kill()
        program.wait()
        os.close(master)
