"""octavo's log: lines on stderr for people or, as JSON, for programs; written by a thread of their own.

What a line says in its text for people, programs find in fields: `extra={"request_id": …}` of a logging call.

Whoever collects the log may stop reading it. Then lines are dropped, and counted, rather than that a process waits.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from queue import Full, Queue

from octavo.config import LogFormat

_FORMAT = "%(asctime)s %(levelname)s %(message)s"  # local time, milliseconds
_MOST_LINES = 4096  # that wait to be written
_FLUSH_SECONDS = 1.0  # that the end of a process waits for them


_OF_EVERY_LINE = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A line is an object: time, level, logger, message, pid, then what the call gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _OF_EVERY_LINE}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


_FORMATTERS: dict[LogFormat, logging.Formatter] = {"text": logging.Formatter(_FORMAT), "json": JsonFormatter()}


def log_format() -> LogFormat:
    """How this process writes its lines."""
    written = [handler.formatter for handler in logging.getLogger().handlers]
    return "json" if _FORMATTERS["json"] in written else "text"


def configure_logging(level: str, form: LogFormat = "text") -> None:
    """octavo's own lines from this level on; libraries' from warning on."""
    root = logging.getLogger()
    if not root.handlers:
        handler = PatientHandler(sys.stderr.fileno())
        handler.setFormatter(_FORMATTERS[form])
        root.addHandler(handler)
        root.setLevel(logging.WARNING)
    logging.getLogger("octavo").setLevel(level.upper())


class PatientHandler(logging.Handler):
    """Writes lines to a descriptor as fast as it takes them; `emit` never waits."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: Queue[str | None] = Queue(_MOST_LINES)  # None: the end
        self._dropped = 0
        self._writer = threading.Thread(target=self._write_all, daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except Full:
            self._dropped += 1
        except Exception:  # a line that cannot be formatted must not be the end of what it speaks of
            self.handleError(record)

    def flush(self) -> None:
        """Until everything is written, but not for ever. Logging calls it at the end of the process."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, _FLUSH_SECONDS)

    def close(self) -> None:
        with suppress(Full):
            self._lines.put_nowait(None)
        self._writer.join(_FLUSH_SECONDS)
        super().close()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self._write(f"WARNING {dropped} lines of the log were dropped: nobody read them in time")
            self._write(line)
            self._lines.task_done()

    def _write(self, line: str) -> None:
        # Not through sys.stderr: its lock, held by a write that waits, would stop the process at its end.
        rest = (line + "\n").encode("utf-8", "backslashreplace")
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:  # nobody will ever read it
            pass
