"""Files of tenants: contents in a folder, everything else about them in the database.

A content is whole and on the disk under its name before the database knows of it, and unknown to the database before
it is removed; what a killed server left in between is swept up at the next start. Who asks for a file must own it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from msgspec import Struct

from octavo.api.batch.database import Database
from octavo.api.limits import Limits
from octavo.errors import InvalidRequest, NotFound, StorageFull

_COLUMNS = "id, owner, purpose, filename, bytes, created_at, expires_at"
_PIECE = 2**20  # bytes that are written at a time


class StoredFile(Struct, frozen=True):
    id: str
    owner: str
    purpose: str
    filename: str
    bytes: int
    created_at: int  # seconds since 1970, as all times here
    expires_at: int | None


class Draft:
    """A file being written; without `Files.keep` it is gone when the context ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._file = open(path, "xb", buffering=0, opener=_private)  # noqa: SIM115 (closed when the context ends)

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self._waiting += len(data)
        self.size += len(data)

    @property
    def wants_writing(self) -> bool:
        return self._waiting >= _PIECE

    def write(self) -> None:
        """What was added goes to the file; blocks."""
        rest = memoryview(b"".join(self._pieces))
        self._pieces, self._waiting = [], 0
        while rest:
            rest = rest[self._file.write(rest) :]

    def finish(self) -> None:
        """All of it is on the disk; blocks."""
        self.write()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


class Files:
    """All tenants' files. An owner is the name of a key; empty: of a server without keys, everybody."""

    def __init__(self, database: Database, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._limits = limits
        self._clock = clock
        self._kept = database.folder / "files"
        self._drafts = database.folder / "incoming"
        for folder in (self._kept, self._drafts):
            folder.mkdir(mode=0o700, exist_ok=True)
        self._remove_strays()

    def _remove_strays(self) -> None:
        """What a killed server had begun to write, or not quite removed."""
        names = self._database.run_alone(
            lambda connection: {name for (name,) in connection.execute("SELECT id FROM files")}
        )
        for stray in [*self._drafts.iterdir(), *(path for path in self._kept.iterdir() if path.name not in names)]:
            stray.unlink()

    def draft(self) -> Draft:
        """A file to be written. Raises StorageFull."""
        if shutil.disk_usage(self._drafts).free < self._limits.free_disk_bytes:
            raise StorageFull("The server's disk is full; delete files that are no longer needed.")
        return Draft(self._drafts / secrets.token_hex(12))

    async def check_room(self, owner: str, size: int) -> None:
        """May this owner store so many bytes more? Raises InvalidRequest."""

        def held(connection: sqlite3.Connection) -> tuple[int, int]:
            query = "SELECT count(*), coalesce(sum(bytes), 0) FROM files WHERE owner = ? AND purpose = 'batch'"
            row: tuple[int, int] = connection.execute(query, (owner,)).fetchone()
            return row

        count, stored = await self._database.run(held)
        if count >= self._limits.stored_files:
            raise InvalidRequest(f"You have {count} files, which is the most; delete some.", code="too_many_files")
        if stored + size > self._limits.stored_bytes:
            raise InvalidRequest(
                f"Your files hold {stored} bytes and may hold {self._limits.stored_bytes}; delete some.",
                code="storage_limit_reached",
            )

    async def keep(
        self, draft: Draft, owner: str, *, purpose: str, filename: str, lifetime: int | None = None
    ) -> StoredFile:
        """The draft, whole and durable under an id. `lifetime` in seconds."""
        stored = await self.settle(draft, owner, purpose=purpose, filename=filename, lifetime=lifetime)
        await self._database.run(lambda connection: enter(connection, stored), durable=True)
        return stored

    async def settle(
        self, draft: Draft, owner: str, *, purpose: str, filename: str, lifetime: int | None = None
    ) -> StoredFile:
        """The first half of `keep`: the content is in its place; `enter` makes it a file."""
        now = int(self._clock())
        stored = StoredFile(
            id="file-" + secrets.token_hex(12),
            owner=owner,
            purpose=purpose,
            filename=filename,
            bytes=draft.size,
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
        )
        await asyncio.to_thread(self._move, draft, self.path(stored.id))
        return stored

    def _move(self, draft: Draft, place: Path) -> None:
        draft.finish()
        draft.path.rename(place)
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def path(self, file_id: str) -> Path:
        return self._kept / file_id

    async def find(self, owner: str, file_id: str, param: str = "file_id") -> StoredFile:
        """Raises NotFound for what does not exist and for what is somebody else's, without a difference."""
        found = await self._database.run(lambda connection: find(connection, owner, file_id))
        if found is None:
            raise not_found(file_id, param)
        return found

    async def page(
        self, owner: str, *, purpose: str | None, after: str | None, limit: int, newest_first: bool
    ) -> list[StoredFile]:
        """Up to `limit` files behind the one with the id `after`. Raises NotFound for an `after` that is none."""

        def select(connection: sqlite3.Connection) -> list[StoredFile] | None:
            conditions, values = ["owner = ?"], [owner]
            if purpose is not None:
                conditions.append("purpose = ?")
                values.append(purpose)
            if after is not None:
                query = "SELECT place FROM files WHERE owner = ? AND id = ?"
                place = connection.execute(query, (owner, after)).fetchone()
                if place is None:
                    return None
                conditions.append(f"place {'<' if newest_first else '>'} ?")
                values += place
            query = (
                f"SELECT {_COLUMNS} FROM files WHERE {' AND '.join(conditions)} "  # noqa: S608 (fixed words)
                f"ORDER BY place {'DESC' if newest_first else 'ASC'} LIMIT ?"
            )
            return [StoredFile(*row) for row in connection.execute(query, (*values, limit))]

        found = await self._database.run(select)
        if found is None:
            raise not_found(str(after), "after")
        return found

    async def delete(self, owner: str, file_id: str) -> None:
        """Raises NotFound, or InvalidRequest while a batch still reads it."""

        def remove(connection: sqlite3.Connection) -> StoredFile | None:
            file = find(connection, owner, file_id)
            if file is not None:
                _check_unused(connection, file)
                connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
            return file

        removed = await self._database.run(remove, durable=True)
        if removed is None:
            raise not_found(file_id)
        await asyncio.to_thread(self.path(removed.id).unlink, missing_ok=True)

    async def expire(self) -> None:
        """Remove the files whose time is over, but for those that a batch still reads."""
        now = int(self._clock())

        def due(connection: sqlite3.Connection) -> list[StoredFile]:
            query = f"SELECT {_COLUMNS} FROM files WHERE expires_at <= ?"  # noqa: S608 (fixed words)
            files = [StoredFile(*row) for row in connection.execute(query, (now,))]
            unused = [file for file in files if _reader(connection, file) is None]
            connection.executemany("DELETE FROM files WHERE id = ?", [(file.id,) for file in unused])
            return unused

        for file in await self._database.run(due):
            await asyncio.to_thread(self.path(file.id).unlink, missing_ok=True)


def enter(connection: sqlite3.Connection, file: StoredFile) -> None:
    query = f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 (fixed words)
    connection.execute(
        query, (file.id, file.owner, file.purpose, file.filename, file.bytes, file.created_at, file.expires_at)
    )


def find(connection: sqlite3.Connection, owner: str, file_id: str) -> StoredFile | None:
    query = f"SELECT {_COLUMNS} FROM files WHERE owner = ? AND id = ?"  # noqa: S608 (fixed words)
    row = connection.execute(query, (owner, file_id)).fetchone()
    return None if row is None else StoredFile(*row)


def _reader(connection: sqlite3.Connection, file: StoredFile) -> str | None:
    """The id of an open batch whose input this is."""
    query = (
        "SELECT id FROM batches WHERE status IN ('validating', 'in_progress', 'cancelling', 'finalizing') "
        "AND input_file = ?"
    )
    row = connection.execute(query, (file.id,)).fetchone()
    return None if row is None else str(row[0])


def _check_unused(connection: sqlite3.Connection, file: StoredFile) -> None:
    if (batch := _reader(connection, file)) is not None:
        raise InvalidRequest(f"The file {file.id} is the input of {batch}, which is not over.", code="file_in_use")


def not_found(file_id: str, param: str = "file_id") -> NotFound:
    shown = file_id if len(file_id) <= 64 else file_id[:64] + "…"
    return NotFound(f"There is no file {shown!r}.", param=param, code="file_not_found")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
