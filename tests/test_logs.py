"""Lines of the log: in order, and never waited for."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from octavo.logs import PatientHandler


@pytest.fixture
def line():
    """A logger that writes to a pipe, and the pipe."""
    reading, writing = os.pipe()
    logger = logging.Logger("test")
    handler = PatientHandler(writing)
    logger.addHandler(handler)
    with open(reading) as log:
        yield logger, handler, log
    handler.flush()  # to nobody
    handler.close()
    os.close(writing)


def test_lines_arrive_in_order(line):
    logger, handler, log = line
    for number in range(100):
        logger.warning("line %d %s", number, "\udc80")
    handler.flush()
    assert [log.readline() for _ in range(100)] == [f"line {number} \\udc80\n" for number in range(100)]


def test_a_log_that_nobody_reads_keeps_nobody_waiting(line):
    logger, _, log = line
    for number in range(20_000):
        logger.warning("%d %s", number, "x" * 100)
    written = [log.readline()]
    while "dropped" not in written[-1]:
        written.append(log.readline())
    assert [int(each.split()[0]) for each in written[:-1]] == list(range(len(written) - 1))
    assert int(written[-1].split()[1]) > 0


def test_a_line_that_cannot_be_formatted_harms_nobody(line, monkeypatch):
    logger, handler, log = line
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.warning("%d", "no number")
    logger.warning("fine")
    handler.flush()
    assert log.readline() == "fine\n"


@pytest.mark.parametrize("reads", [True, False])
def test_the_last_lines_are_written_before_a_process_ends(reads):
    program = """
import logging
from octavo.logs import configure_logging
configure_logging("info")
for number in range(2000):
    logging.getLogger("octavo.x").info("%d %s", number, "x" * 100)
"""
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        if not reads:
            assert process.wait() == 0
        log = process.stderr.read()
    assert log.count("\n") == 2000 if reads else " INFO 0 xxx" in log.partition("\n")[0]
    assert process.returncode == 0
    assert "Fatal" not in log
