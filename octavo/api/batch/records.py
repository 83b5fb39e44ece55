"""What batches are and how far they have come: every change of a batch is one transaction of the database.

    validating → in_progress → finalizing → completed | expired
    validating → failed
    validating | in_progress → cancelling → cancelled

A line's answer is stored once; the files of answers are written from what is stored, so neither loses or repeats a line
however often the server is killed.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec import Struct

from octavo.api.batch import files
from octavo.api.batch.database import Database
from octavo.api.batch.files import StoredFile
from octavo.api.limits import Limits
from octavo.errors import InvalidRequest, NotFound, RateLimited

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
OPEN: tuple[Status, ...] = ("validating", "in_progress", "cancelling", "finalizing")
_PIECE = 64  # answers read at a time


class Mistake(Struct, frozen=True):
    """Why a batch was not begun."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None  # of the input file; 1 is the first


class Batch(Struct, frozen=True, kw_only=True):
    """Times in seconds since 1970."""

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    metadata: dict[str, str] | None = None
    output_lifetime: int | None = None  # seconds that the files of answers are kept; None: until they are deleted
    total: int = 0  # lines
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    mistakes: list[Mistake] = []

    def become(self, status: Status, now: float, **changes: object) -> Batch:
        return msgspec.structs.replace(self, status=status, **{f"{status}_at": int(now)}, **changes)


class Result(Struct, frozen=True):
    """One line's answer: a line of the output file or, if it failed, of the error file."""

    line: int  # from 0
    failed: bool
    answer: bytes


_decoder = msgspec.json.Decoder(Batch)


class Batches:
    """All tenants' batches. Who asks for one must own it."""

    def __init__(self, database: Database, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._limits = limits
        self.clock = clock

    # ------------------------------------------------------------------ what tenants do

    async def create(
        self,
        input_file: StoredFile,
        endpoint: str,
        *,
        window: str,
        seconds: int,
        metadata: dict[str, str] | None = None,
        output_lifetime: int | None = None,
    ) -> Batch:
        """Raises RateLimited if the owner has too many that are not over, NotFound if the file is gone."""
        now = int(self.clock())
        batch = Batch(
            id="batch_" + secrets.token_hex(16),
            owner=input_file.owner,
            endpoint=endpoint,
            input_file_id=input_file.id,
            completion_window=window,
            status="validating",
            created_at=now,
            expires_at=now + seconds,
            metadata=metadata,
            output_lifetime=output_lifetime,
        )

        def insert(connection: sqlite3.Connection) -> tuple[int, bool]:
            query = f"SELECT count(*) FROM batches WHERE owner = ? AND status IN ({_marks(OPEN)})"  # noqa: S608
            (count,) = connection.execute(query, (batch.owner, *OPEN)).fetchone()
            present = files.find(connection, batch.owner, input_file.id) is not None
            if present and count < self._limits.open_batches:
                connection.execute(
                    "INSERT INTO batches (id, owner, status, input_file, record) VALUES (?, ?, ?, ?, ?)",
                    (batch.id, batch.owner, batch.status, batch.input_file_id, msgspec.json.encode(batch)),
                )
            return count, present

        count, present = await self._database.run(insert, durable=True)
        if not present:
            raise files.not_found(input_file.id, "input_file_id")
        if count >= self._limits.open_batches:
            message = f"{count} of your batches are not over, which is the most; wait for one or cancel it."
            raise RateLimited(message, retry_after=60)
        return batch

    async def find(self, owner: str, batch_id: str) -> Batch:
        """Raises NotFound for what does not exist and for what is somebody else's, without a difference."""

        def select(connection: sqlite3.Connection) -> Batch | None:
            query = "SELECT record FROM batches WHERE owner = ? AND id = ?"
            row = connection.execute(query, (owner, batch_id)).fetchone()
            return None if row is None else _decoder.decode(row[0])

        found = await self._database.run(select)
        if found is None:
            raise _not_found(batch_id)
        return found

    async def page(self, owner: str, *, after: str | None, limit: int) -> list[Batch]:
        """The newest first, up to `limit` behind the one with the id `after`. Raises NotFound for one that is none."""

        def select(connection: sqlite3.Connection) -> list[Batch] | None:
            before = 2**62
            if after is not None:
                query = "SELECT place FROM batches WHERE owner = ? AND id = ?"
                row = connection.execute(query, (owner, after)).fetchone()
                if row is None:
                    return None
                (before,) = row
            query = "SELECT record FROM batches WHERE owner = ? AND place < ? ORDER BY place DESC LIMIT ?"
            return [_decoder.decode(record) for (record,) in connection.execute(query, (owner, before, limit))]

        found = await self._database.run(select)
        if found is None:
            raise _not_found(str(after))
        return found

    async def cancel(self, owner: str, batch_id: str) -> Batch:
        """Begin to. Raises NotFound, or InvalidRequest for a batch that is over or nearly so."""
        batch = await self.find(owner, batch_id)
        changed = await self.move(batch, ("validating", "in_progress"), "cancelling", durable=True)
        if changed is not None:
            return changed
        batch = await self.find(owner, batch_id)
        if batch.status == "cancelling":
            return batch
        raise InvalidRequest(f"Cannot cancel a batch with status '{batch.status}'.", code="invalid_batch_status")

    # ------------------------------------------------------------------ what the runner does

    async def move(
        self, batch: Batch, origins: tuple[Status, ...], status: Status, *, durable: bool = False, **changes: object
    ) -> Batch | None:
        """From one of these states to another; None if it is in none of them any more."""

        def change(connection: sqlite3.Connection) -> Batch | None:
            current = _current(connection, batch)
            if current.status not in origins:
                return None
            changed = current.become(status, self.clock(), **changes)
            _save(connection, changed)
            return changed

        return await self._database.run(change, durable=durable)

    async def open_batches(self) -> list[Batch]:
        """Those that are not over, the oldest first."""

        def select(connection: sqlite3.Connection) -> list[Batch]:
            query = f"SELECT record FROM batches WHERE status IN ({_marks(OPEN)}) ORDER BY place"  # noqa: S608
            return [_decoder.decode(record) for (record,) in connection.execute(query, OPEN)]

        return await self._database.run(select)

    async def record(self, batch: Batch, result: Result) -> None:
        """A line is done. Its answer and the batch's counts change together."""

        def insert(connection: sqlite3.Connection) -> None:
            current = _current(connection, batch)
            if current.status not in ("in_progress", "cancelling"):
                return  # it expired meanwhile: the line is listed as not computed
            connection.execute(
                "INSERT INTO results (batch, line, failed, answer) VALUES (?, ?, ?, ?)",
                (_place(connection, batch), result.line, result.failed, result.answer),
            )
            counts = {"failed": current.failed + 1} if result.failed else {"completed": current.completed + 1}
            _save(connection, msgspec.structs.replace(current, **counts))

        await self._database.run(insert)

    async def done(self, batch: Batch) -> set[int]:
        """The lines whose answers are stored."""

        def select(connection: sqlite3.Connection) -> set[int]:
            query = "SELECT line FROM results WHERE batch = ?"
            return {line for (line,) in connection.execute(query, (_place(connection, batch),))}

        return await self._database.run(select)

    async def results(self, batch: Batch, after: int) -> list[Result]:
        """The next few behind this line, in the lines' order."""

        def select(connection: sqlite3.Connection) -> list[Result]:
            query = "SELECT line, failed, answer FROM results WHERE batch = ? AND line > ? ORDER BY line LIMIT ?"
            rows = connection.execute(query, (_place(connection, batch), after, _PIECE))
            return [Result(line, bool(failed), answer) for line, failed, answer in rows]

        return await self._database.run(select)

    async def close(self, batch: Batch, output: StoredFile | None, errors: StoredFile | None, failed: int) -> Batch:
        """A batch that was finalized, or cancelled, is over, and its files of answers exist, in one moment."""

        def finish(connection: sqlite3.Connection) -> Batch:
            current = _current(connection, batch)
            for file in (output, errors):
                if file is not None:
                    files.enter(connection, file)
            status: Status = "completed"
            if current.status == "cancelling":
                status = "cancelled"
            elif current.completed + current.failed < current.total:
                status = "expired"
            closed = current.become(
                status,
                self.clock(),
                failed=failed,
                output_file_id=output and output.id,
                error_file_id=errors and errors.id,
            )
            _save(connection, closed)
            connection.execute("DELETE FROM results WHERE batch = ?", (_place(connection, batch),))
            return closed

        return await self._database.run(finish, durable=True)


def _current(connection: sqlite3.Connection, batch: Batch) -> Batch:
    (record,) = connection.execute("SELECT record FROM batches WHERE id = ?", (batch.id,)).fetchone()
    return _decoder.decode(record)


def _save(connection: sqlite3.Connection, batch: Batch) -> None:
    query = "UPDATE batches SET status = ?, record = ? WHERE id = ?"
    connection.execute(query, (batch.status, msgspec.json.encode(batch), batch.id))


def _place(connection: sqlite3.Connection, batch: Batch) -> int:
    (place,) = connection.execute("SELECT place FROM batches WHERE id = ?", (batch.id,)).fetchone()
    return int(place)


def _marks(values: tuple[Status, ...]) -> str:
    return ", ".join("?" * len(values))


def _not_found(batch_id: str) -> NotFound:
    shown = batch_id if len(batch_id) <= 64 else batch_id[:64] + "…"
    return NotFound(f"There is no batch {shown!r}.", param="batch_id", code="batch_not_found")
