"""The data folder and its SQLite database: one connection, on a thread of its own.

Each call of `run` is one transaction. One that was told to a client is on the disk (`durable`) before the call returns,
also when the machine loses its power; the others survive the end of the process, however it ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from octavo.errors import ConfigError

T = TypeVar("T")

_VERSION = 1
_SCHEMA = """
CREATE TABLE files (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
);
CREATE INDEX files_of_owner ON files (owner, place);
CREATE TABLE batches (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    status TEXT NOT NULL,
    input_file TEXT NOT NULL,
    record BLOB NOT NULL
);
CREATE INDEX batches_of_owner ON batches (owner, place);
CREATE INDEX batches_by_status ON batches (status);
CREATE TABLE results (
    batch INTEGER NOT NULL REFERENCES batches (place),
    line INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    answer BLOB NOT NULL,
    PRIMARY KEY (batch, line)
);
"""


class Database:
    """Made of a folder, which is created if need be and belongs to one server at a time. Raises ConfigError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(folder / "lock")
            self._connection = _connect(folder / "octavo.sqlite3")
        except OSError as error:
            raise ConfigError(f"cannot use the data folder {folder}: {error.strerror}") from None
        except sqlite3.Error as error:
            raise ConfigError(f"cannot use the database in {folder}: {error}") from None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="octavo-database")

    async def run(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """What `work` returns, once what it wrote is kept; if it raises, nothing is. Cancelling does not undo it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work, durable)

    def run_alone(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The same here and now; before anything else is run."""
        return self._transact(work, durable=False)

    def _transact(self, work: Callable[[sqlite3.Connection], T], durable: bool) -> T:
        connection = self._connection
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            value = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # not ended by the error itself, such as a full disk
                connection.execute("ROLLBACK")
            raise
        return value

    def close(self) -> None:
        """After what was begun is done."""
        self._thread.shutdown()
        self._connection.close()
        os.close(self._lock)


def _lock(path: Path) -> int:
    """The descriptor that keeps other servers out, until it is closed or the process is gone."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"another server uses {path.parent}; give each its own --data-dir") from None
    return descriptor


def _connect(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite would let others of the machine read it
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
    elif version != _VERSION:
        connection.close()
        raise ConfigError(f"{path} was written by another version of octavo; use another --data-dir")
    return connection
