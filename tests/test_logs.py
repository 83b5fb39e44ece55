"""Lines of the log: in order, and never waited for."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from octavo.logs import JsonFormatter, PatientHandler


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


def test_lines_for_programs_are_objects_with_fields(line):
    logger, handler, log = line
    handler.setFormatter(JsonFormatter())
    logger.info("%s %d", "GET\n\udc80", 200, extra={"request_id": "abc", "status": 200})
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    handler.flush()
    first, second = (json.loads(log.readline()) for _ in range(2))
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "test",
        "message": "GET\n\udc80 200",
        "pid": os.getpid(),
        "request_id": "abc",
        "status": 200,
    }
    assert second["message"] == "failed"
    assert "ValueError: why" in second["exception"]


def test_children_write_as_their_parent_does():
    program = """
from octavo.logs import configure_logging, log_format
assert log_format() == "text"
configure_logging("info", "json")
assert log_format() == "json"
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
