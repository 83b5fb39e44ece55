"""What is typed while an answer streams is not shown, and the terminal is left as it was."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from types import ModuleType

import pytest

from octavo.cli import terminal as cli_terminal
from octavo.cli.terminal import without_echo


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield slave
    os.close(master)


def echoes(terminal: int) -> bool:
    return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_echo_is_off_inside_and_back_whatever_happens(terminal: int, error: type[BaseException] | None) -> None:
    before, handler = termios.tcgetattr(terminal), signal.getsignal(signal.SIGTERM)
    caught: type[BaseException] | None = None
    try:
        with without_echo():
            assert not echoes(terminal)
            assert termios.tcgetattr(terminal)[3] & termios.ISIG, "Ctrl-C still is one"
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError) as raised:
        caught = type(raised)
    assert caught is error
    assert termios.tcgetattr(terminal) == before
    assert signal.getsignal(signal.SIGTERM) == handler


DYING = """
import signal, sys
from octavo.cli.terminal import without_echo
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started with
with without_echo():
    print("silent", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_restores_the_terminal_and_ends_the_program(terminal: int, number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", DYING], stdin=terminal, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"silent\n"
        silent = not echoes(terminal)
        program.send_signal(number)
        try:
            assert program.wait(20) == -number
        finally:
            program.kill()
    assert silent
    assert echoes(terminal)


def test_without_a_terminal_there_is_nothing_to_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with open(os.devnull) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with without_echo():
            assert signal.getsignal(signal.SIGTERM) == handler


BACKGROUND = """
import os, signal, sys
os.setsid()
os.close(os.open(os.ttyname(0), os.O_RDWR))  # the terminal now controls this session
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    from octavo.cli.terminal import without_echo
    with without_echo():
        pass
    os._exit(0)
_, status = os.waitpid(child, os.WUNTRACED)
if os.WIFSTOPPED(status):
    os.kill(child, signal.SIGKILL)
sys.exit(0 if status == 0 else 1)
"""


def test_a_job_in_the_background_leaves_the_terminal_alone(terminal: int) -> None:
    assert subprocess.run([sys.executable, "-c", BACKGROUND], stdin=terminal, timeout=20, check=False).returncode == 0


def test_a_hangup_that_is_ignored_stays_ignored(terminal: int) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with without_echo():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert not echoes(terminal)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_that_python_does_not_know_is_left(terminal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: pytest.fail("set"))
    with without_echo():
        assert not echoes(terminal)
    assert echoes(terminal)


@pytest.mark.parametrize(("module", "name"), [(sys, "stdin"), (cli_terminal, "termios")])
def test_without_stdin_or_termios_there_is_nothing_to_hide(
    terminal: int, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    monkeypatch.setattr(module, name, None)
    with without_echo():
        assert echoes(terminal)
