"""Files and batches of one server: opened with it, run beside it, closed after it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from starlette.types import ASGIApp, Message

from octavo.api.batch.database import Database
from octavo.api.batch.files import Files
from octavo.api.batch.records import Batches
from octavo.api.batch.runner import Answer, Ask, Runner, Slots
from octavo.api.limits import Limits
from octavo.api.tenants import Tenant
from octavo.api.traffic import Traffic


@dataclass(frozen=True, slots=True)
class BatchService:
    limits: Limits
    files: Files
    batches: Batches
    runner: Runner
    endpoints: tuple[str, ...]  # that a batch may name
    _database: Database

    @classmethod
    def open(
        cls,
        folder: Path,
        limits: Limits,
        *,
        endpoints: Mapping[str, ASGIApp],
        find_tenant: Callable[[str], Tenant | None],
        concurrency: int,
        others: Callable[[], bool],
        traffic: Traffic,
    ) -> Self:
        """The folder's files and batches. Raises ConfigError.

        find_tenant: whose a batch is, by name; None while there is no such key. others: whether anybody but batches
        uses the server.
        """
        database = Database(folder)
        files, batches = Files(database, limits), Batches(database, limits)
        ask, slots = ask_within(endpoints, find_tenant), Slots(concurrency, others)
        runner = Runner(files, batches, ask, limits, slots, traffic)
        return cls(limits, files, batches, runner, tuple(endpoints), database)

    async def run(self) -> None:
        """Batches, until cancelled."""
        await self.runner.run()

    def close(self) -> None:
        """After the runner has ended."""
        self._database.close()


def ask_within(endpoints: Mapping[str, ASGIApp], find_tenant: Callable[[str], Tenant | None]) -> Ask:
    """Asks the app in this process, behind what checks keys and writes the log, as a request that may wait."""

    async def ask(owner: str, url: str, body: bytes) -> Answer | None:
        tenant = find_tenant(owner)
        if tenant is None:
            return None
        request_id = secrets.token_hex(16)
        scope = {
            "type": "http",
            "method": "POST",
            "path": url,
            "headers": [(b"content-type", b"application/json")],
            "query_string": b"",
            "state": {"tenant": tenant, "request_id": request_id, "background": True},
        }
        unread = [body]
        status = 0
        retry_after: float | None = None
        parts: list[bytes] = []

        async def receive() -> Message:
            if not unread:
                await asyncio.Event().wait()  # the other side never leaves; it cancels
            return {"type": "http.request", "body": unread.pop(), "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, retry_after
            if message["type"] == "http.response.start":
                status = message["status"]
                retry_after = next((float(value) for name, value in message["headers"] if name == b"retry-after"), None)
            else:
                parts.append(message.get("body", b""))

        await endpoints[url](scope, receive, send)
        return Answer(status, request_id, b"".join(parts), retry_after)

    return ask
