"""What handlers work with: the desk that all requests share, and the call that one request is.

Handlers see no HTTP: they take a `Call` and return something that can be sent. Models may still be loading. How much
the desk takes on at once is decided here, before any work is done for a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from starlette.datastructures import QueryParams

from octavo.api.batch.service import BatchService
from octavo.api.deadline import Deadline
from octavo.api.limits import LOGGED_FIELDS, LOGGED_NAME_LENGTH, Limits
from octavo.api.tenants import Tenant
from octavo.api.traffic import Traffic
from octavo.api.wire import decode, explain
from octavo.engine.ability import check_task
from octavo.errors import InvalidRequest, Overloaded
from octavo.face import Known, Models, Served
from octavo.repository.names import listed
from octavo.request import BeamSearchParams, FinishReason, PoolingParams, RequestMetrics, SamplingParams, Task

logger = logging.getLogger("octavo.api")

T = TypeVar("T", bound=Struct)


class ShuttingDown(Overloaded):
    code = "shutting_down"


class IgnoredFields:
    """Says in the log which fields of bodies nobody reads: a mistyped `max_token` would else go unnoticed.

    Names only, shortened, and one line a second at most, whatever clients send.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until = 0.0
        self._unsaid = 0

    def note(self, request_id: str, names: Collection[str]) -> None:
        now = self._clock()
        if now < self._quiet_until:
            self._unsaid += 1
            return
        shown = [ascii(name[:LOGGED_NAME_LENGTH]) for name in sorted(names)[:LOGGED_FIELDS]]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        since = f" ({self._unsaid} more since the last warning)" if self._unsaid else ""
        logger.warning("fields of request %s that were ignored: %s%s%s", request_id, ", ".join(shown), more, since)
        self._quiet_until, self._unsaid = now + 1.0, 0


class Bodies:
    """Memory for the bodies of requests. Small ones always find room, large ones share what there is for them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    @contextmanager
    def receive(self) -> Iterator[Callable[[int], None]]:
        """While a request lives. Gives a function that is told how large its body is so far; it raises Overloaded."""
        held = 0

        def grow(size: int) -> None:
            nonlocal held
            if size > self._limits.small_body_bytes:
                if self._held + size - held > self._limits.large_bodies_bytes:
                    raise Overloaded("Too many large requests are in flight; try again later.")
                self._held += size - held
                held = size

        try:
            yield grow
        finally:
            self._held -= held


@dataclass(slots=True)
class Desk:
    """What all requests share."""

    limits: Limits
    models: Models
    draining: bool = False
    created: int = 0
    ignored: IgnoredFields = field(default_factory=IgnoredFields)
    traffic: Traffic = field(default_factory=Traffic)
    anyone: Tenant = field(default_factory=Tenant)  # whose a request without a key is, where none is needed
    admins_apart: bool = False  # they have a port of their own
    batch: BatchService | None = None  # if the server has a data folder
    in_flight: int = 0  # accepted requests without an outcome yet, each prompt of a request being one
    in_background: int = 0  # how many of those are lines of batches
    bodies: Bodies = field(init=False)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.bodies = Bodies(self.limits)
        self._idle.set()

    def drain(self) -> None:
        """The server ends: requests in flight may finish, others are refused."""
        self.draining = True
        self.models.drain()

    def check_serving(self) -> None:
        """Are there models to ask? Raises Overloaded or EngineDead."""
        if self.draining:
            raise ShuttingDown("The server is shutting down.")
        self.models.check()

    def check_ready(self) -> list[str]:
        """Can it generate now? As `Models.check_ready`."""
        self.check_serving()
        return self.models.check_ready()

    def known(self) -> Sequence[Known]:
        """The names that clients may use. Raises Overloaded or EngineDead."""
        self.check_serving()
        return self.models.known()

    def lease(self, name: str | None, key: str) -> AbstractAsyncContextManager[Served]:
        """A model, for as long as a request uses it. Raises what `Models.lease` does, and Overloaded in the end."""
        self.check_serving()
        return self.models.lease(name, key)

    def check(self) -> None:
        """May a request be accepted now? Raises Overloaded or EngineDead."""
        self.check_serving()
        self._check_room(1)

    @contextmanager
    def accept(self, background: bool = False) -> Iterator[None]:
        """The life of an accepted request. Raises what `check` raises."""
        self.check()
        with self._count(1, background):
            yield

    @contextmanager
    def accept_more(self, count: int, background: bool = False) -> Iterator[None]:
        """So many more that an accepted request turned out to be, even while the server drains. Raises Overloaded."""
        self._check_room(count)
        with self._count(count, background):
            yield

    def _check_room(self, count: int) -> None:
        room = self.models.room
        if room is None or self.in_flight + count <= room:
            return
        self.traffic.refuse()
        raise Overloaded(
            f"{self.in_flight} requests are running or waiting already and {count} more do not fit; try again later."
        )

    @contextmanager
    def _count(self, count: int, background: bool) -> Iterator[None]:
        self.in_flight += count
        self.in_background += count * background
        if self.used:
            self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= count
            self.in_background -= count * background
            if not self.used:
                self._idle.set()

    @property
    def used(self) -> bool:
        """Whether anybody waits for an answer; a batch does not, it goes on when the server is there again."""
        return self.in_flight > self.in_background

    async def idle(self) -> None:
        """Until nobody waits for an answer any more."""
        await self._idle.wait()


@dataclass(slots=True)
class Tally:
    """What is known of an HTTP request so far, and what was spent on it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion's
    times: dict[int, RequestMetrics] = field(default_factory=dict)  # of each prompt
    costs_are_shown: bool = False  # the caller asked for them
    asked_model: str | None = None
    model: str | None = None  # that answers
    params: SamplingParams | BeamSearchParams | PoolingParams | None = None  # of the first prompt
    finish_reasons: list[FinishReason] = field(default_factory=list)

    def book(self, traffic: Traffic, tenant: Tenant) -> None:
        """The request is over: what it used is this tenant's, if it came as far as to a model."""
        if self.model is not None:
            traffic.spend(
                tenant.name or "",
                prompt_tokens=self.prompt_tokens,
                cached_tokens=self.cached_tokens,
                output_tokens=self.completion_tokens,
                compute_seconds=self.compute_seconds,
                energy_joules=self.energy_joules,
            )

    @property
    def queue_seconds(self) -> float:
        """Of the prompt that waited longest for its first step."""
        return max((times.queue_seconds for times in self.times.values()), default=0.0)

    @property
    def compute_seconds(self) -> float:
        return sum(times.compute_seconds for times in self.times.values())

    @property
    def energy_joules(self) -> float | None:
        known = [times.energy_joules for times in self.times.values() if times.energy_joules is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class BodyStream:
    """A body as it arrives. Reading it raises RequestTooLarge where it exceeds the limit it was made with."""

    content_type: str
    parts: AsyncIterator[bytes]


@dataclass(slots=True)
class Call:
    """What a handler gets: the decoded HTTP request, without HTTP."""

    desk: Desk
    tenant: Tenant
    deadline: Deadline
    request_id: str  # 32 hex digits, made by the server
    body: bytes
    path_params: dict[str, Any]
    leases: AsyncExitStack  # closed when the answer is over
    query_string: bytes = b""
    stream: BodyStream | None = None  # instead of `body`, for an operation that takes a form
    background: bool = False  # a line of a batch: others go first
    tally: Tally = field(default_factory=Tally)

    async def read(self, shape: type[T], unsupported: Mapping[str, str] | None = None) -> T:
        """The body as a struct, as `decode` reads it. Raises InvalidRequest."""
        try:
            return await decode(self.body, shape, unsupported, partial(self.desk.ignored.note, self.request_id))
        except InvalidRequest as error:
            if (error.param, error.code) == ("model", "missing_required_parameter"):
                error.message += f" Here it may be {listed([each.name for each in self.desk.models.known()])}."
            raise

    def query(self, shape: type[T]) -> T:
        """The query's parameters as a struct. Raises InvalidRequest."""
        try:
            return msgspec.convert(dict(QueryParams(self.query_string)), shape, strict=False)
        except msgspec.ValidationError as error:
            raise explain(str(error)) from None

    async def model(self, name: str | None, user: str | None = None, task: Task | None = None) -> Served:
        """The model to answer with, this request's until the answer is over. Raises as `Desk.lease` does.

        user: who asks, as the body says; where versions of a model share its requests, a user stays with one.
        task: what the model must be able to do, else InvalidRequest says what it is for.
        """
        key = self.request_id if user is None else f"{self.tenant.name or ''}\0{user}"
        self.deadline.await_first_token()  # the model may have to be loaded
        served = await self.leases.enter_async_context(self.desk.lease(name, key))
        self.deadline.first_token()
        self.tally.asked_model, self.tally.model = name, served.name
        if task is not None:
            check_task(served.engine.ability, task)
        return served

    @contextmanager
    def running(self, prompts: int) -> Iterator[None]:
        """While so many prompts are continued: each is a request, the first is this one. Raises as `accept` does."""
        if prompts == 1:
            yield
            return
        with self.desk.accept_more(prompts - 1, self.background), self.tenant.request(prompts - 1):
            yield
