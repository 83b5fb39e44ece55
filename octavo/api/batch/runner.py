"""Runs the lines of open batches as ordinary requests, a bounded number at a time, and stores what they answer.

A line whose answer is stored is done; one that is cut off before, by the end of the server say, is asked again. Few
lines run while others use the server. How a line is asked is the caller's business (`Ask`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from octavo.api.batch import lines
from octavo.api.batch.files import Draft, Files, StoredFile
from octavo.api.batch.lines import Place
from octavo.api.batch.records import Batch, Batches, Result
from octavo.api.limits import Limits
from octavo.api.traffic import Traffic

logger = logging.getLogger("octavo.api")

_AGAIN = (429, 503)  # the server, or the key's share, has no room now
_LONGEST_PAUSE = 60.0
_FAULT_PAUSE = 30.0  # after a fault of ours, such as a full disk
_LOOK_SECONDS = 0.05  # between looks at whether others use the server
_TICK = 60.0  # between looks at which files have expired


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    request_id: str
    body: bytes  # JSON
    retry_after: float | None = None  # seconds


#: (owner, url, body) -> the answer; None while nobody may ask in the owner's name. Cancelling it aborts the request.
Ask = Callable[[str, str, bytes], Awaitable[Answer | None]]


class LineResponse(Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(Struct):
    code: str
    message: str


class AnsweredLine(Struct, kw_only=True):
    """A line of an output or error file."""

    id: str = msgspec.field(default_factory=lambda: "batch_req_" + secrets.token_hex(12))
    custom_id: str
    response: LineResponse | None = None
    error: LineError | None = None


_EXPIRED = LineError("batch_expired", "The completion window was over before this request was executed.")
_CANCELLED = LineError("batch_cancelled", "The batch was cancelled before this request was executed.")


class Slots:
    """Room for `most` lines at once; for an eighth of them while `others` says that the server is used.

    Who waits is served in turn, so several batches go on side by side.
    """

    def __init__(self, most: int, others: Callable[[], bool]) -> None:
        self._most = most
        self._others = others
        self._taken = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    async def take(self) -> None:
        async with self._turn:
            while self._taken >= (max(1, self._most // 8) if self._others() else self._most):
                self._freed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._freed.wait()
            self._taken += 1

    def give(self, _: object = None) -> None:
        self._taken -= 1
        self._freed.set()


@dataclass(slots=True)
class _Work:
    """What is left of a batch."""

    batch: Batch
    todo: deque[tuple[int, Place]]
    refused: list[tuple[int, Place]] = field(default_factory=list)
    pause: float = 0.0  # seconds until the refused ones may be asked again


class Runner:
    def __init__(
        self, files: Files, batches: Batches, ask: Ask, limits: Limits, slots: Slots, traffic: Traffic
    ) -> None:
        self._files = files
        self._batches = batches
        self._ask = ask
        self._limits = limits
        self._slots = slots
        self._traffic = traffic
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[str] = set()

    async def run(self) -> None:
        """Until cancelled: whatever was open when the server ended goes on."""
        try:
            for batch in await self._batches.open_batches():
                self.start(batch)
            while True:
                await self._files.expire()
                await asyncio.sleep(_TICK)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, batch: Batch) -> None:
        """See an open batch through to its end."""
        if batch.id not in self._tasks:
            task = self._tasks[batch.id] = asyncio.create_task(self._see_through(batch))
            task.add_done_callback(lambda _: self._forget(batch))
            self._traffic.set_open_batches(len(self._tasks))

    def _forget(self, batch: Batch) -> None:
        del self._tasks[batch.id]
        self._traffic.set_open_batches(len(self._tasks))

    def cancel(self, batch: Batch) -> None:
        """A batch that became `cancelling` gives up what it is doing."""
        if batch.id in self._tasks:
            self._cancelled.add(batch.id)
        if (asking := self._asking.get(batch.id)) is not None:
            asking.cancel()

    async def _see_through(self, batch: Batch) -> None:
        try:
            while True:
                try:
                    await self._advance(await self._batches.find(batch.owner, batch.id))
                    return
                except Exception:  # the edge: a batch's fault is its own, and may pass
                    logger.exception("%s cannot go on; another try in %g s", batch.id, _FAULT_PAUSE)
                    await asyncio.sleep(_FAULT_PAUSE)
        finally:
            self._cancelled.discard(batch.id)

    async def _advance(self, batch: Batch) -> None:
        if batch.status == "validating":
            await self._validate(batch)
            batch = await self._batches.find(batch.owner, batch.id)
        if batch.status == "in_progress":
            await self._ask_in_time(batch)
            await self._batches.move(batch, ("in_progress",), "finalizing")
            batch = await self._batches.find(batch.owner, batch.id)
        if batch.status in ("finalizing", "cancelling"):
            await self._finalize(batch)

    async def _validate(self, batch: Batch) -> None:
        path = self._files.path(batch.input_file_id)
        count, mistakes = await asyncio.to_thread(lines.check, path, batch.endpoint, self._limits)
        if mistakes:
            moved = await self._batches.move(batch, ("validating",), "failed", mistakes=mistakes)
        else:
            moved = await self._batches.move(batch, ("validating",), "in_progress", total=count)
        if moved is not None:
            _log(moved)

    # ------------------------------------------------------------------ lines

    async def _ask_in_time(self, batch: Batch) -> None:
        """Until all lines are done, the window is over or the batch is cancelled."""
        asking = self._asking[batch.id] = asyncio.create_task(self._ask_all(batch))
        if batch.id in self._cancelled:
            asking.cancel()
        try:
            await asyncio.wait({asking}, timeout=max(0.0, batch.expires_at - self._batches.clock()))
        finally:
            del self._asking[batch.id]
            asking.cancel()
            await asyncio.wait({asking})
        if not asking.cancelled():
            asking.result()

    async def _ask_all(self, batch: Batch) -> None:
        places = await asyncio.to_thread(lines.places, self._files.path(batch.input_file_id), self._limits)
        done = await self._batches.done(batch)
        work = _Work(batch, deque(item for item in enumerate(places) if item[0] not in done))
        while work.todo:
            async with asyncio.TaskGroup() as group:
                while work.todo and not work.refused:
                    await self._slots.take()
                    task = group.create_task(self._ask_one(work, *work.todo.popleft()))
                    task.add_done_callback(self._slots.give)
            if work.refused:
                work.todo.extendleft(sorted(work.refused, reverse=True))
                work.refused.clear()
                await asyncio.sleep(work.pause)

    async def _ask_one(self, work: _Work, which: int, place: Place) -> None:
        batch = work.batch
        line = await asyncio.to_thread(lines.read, self._files.path(batch.input_file_id), place)
        answer = await self._ask(batch.owner, line.url, bytes(line.body))
        if answer is None or answer.status in _AGAIN:
            work.refused.append((which, place))
            work.pause = min(_LONGEST_PAUSE, (answer and answer.retry_after) or 1.0)
            return
        response = LineResponse(answer.status, answer.request_id, msgspec.Raw(answer.body))
        answered = AnsweredLine(custom_id=line.custom_id, response=response)
        failed = answer.status != 200
        await self._batches.record(batch, Result(which, failed, msgspec.json.encode(answered)))
        self._traffic.finish_line(failed)

    # ------------------------------------------------------------------ the end

    async def _finalize(self, batch: Batch) -> None:
        """Write the files of answers from what is stored; a killed server does it again from the beginning."""
        with ExitStack() as stack:
            output = _Lines(self._files, batch, "output", stack)
            errors = _Lines(self._files, batch, "error", stack)
            if batch.total:
                await self._write_answers(batch, output, errors)
            _log(await self._batches.close(batch, await output.settle(), await errors.settle(), errors.count))

    async def _write_answers(self, batch: Batch, output: _Lines, errors: _Lines) -> None:
        path = self._files.path(batch.input_file_id)
        reason = _CANCELLED if batch.status == "cancelling" else _EXPIRED
        places = await asyncio.to_thread(lines.places, path, self._limits)
        stored = self._stored(batch)
        result = await anext(stored, None)
        for which, place in enumerate(places):
            if result is not None and result.line == which:
                await (errors if result.failed else output).add(result.answer)
                result = await anext(stored, None)
            else:
                line = await asyncio.to_thread(lines.read, path, place)
                await errors.add(msgspec.json.encode(AnsweredLine(custom_id=line.custom_id, error=reason)))

    async def _stored(self, batch: Batch) -> AsyncIterator[Result]:
        after = -1
        while found := await self._batches.results(batch, after):
            for result in found:
                yield result
            after = found[-1].line


def _log(batch: Batch) -> None:
    logger.info(
        "%s is %s: %d lines, %d completed, %d failed",
        batch.id,
        batch.status,
        batch.total,
        batch.completed,
        batch.failed,
        extra={"batch_id": batch.id, "tenant": batch.owner, "status": batch.status},
    )


class _Lines:
    """A file of answers, which exists once there is a line in it."""

    def __init__(self, files: Files, batch: Batch, kind: str, stack: ExitStack) -> None:
        self._files = files
        self._batch = batch
        self._kind = kind
        self._stack = stack
        self._draft: Draft | None = None
        self.count = 0

    async def add(self, line: bytes) -> None:
        if self._draft is None:
            self._draft = self._stack.enter_context(self._files.draft())
        self._draft.add(line + b"\n")
        self.count += 1
        if self._draft.wants_writing:
            await asyncio.to_thread(self._draft.write)

    async def settle(self) -> StoredFile | None:
        if self._draft is None:
            return None
        batch = self._batch
        name = f"{batch.id}_{self._kind}.jsonl"
        return await self._files.settle(
            self._draft, batch.owner, purpose="batch_output", filename=name, lifetime=batch.output_lifetime
        )
