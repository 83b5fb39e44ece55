"""The life of one version of a model, and who must go so that another has room. Pure: no clock, no process, no I/O.

    declared ──▶ loading ──▶ ready ◀──▶ draining ──▶ declared, or gone
                    │          │
                    └──▶ failed ◀──┘  (declared again when the declaration changes or someone asks later)

What is loaded holds its memory from the beginning of loading until its processes have ended. The clock is the caller's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from octavo.config import EngineConfig
from octavo.errors import OctavoError
from octavo.face import Engine, State
from octavo.metrics import Metrics

PATIENCE = 10.0  # seconds that a load waits for others to become idle before a busy one has to make room
_RETRY_SECONDS = 10.0  # after a failure, until a request may try again; doubles
_LONGEST_RETRY = 600.0

_AFTER: dict[State, tuple[State, ...]] = {
    "declared": ("loading", "failed"),
    "loading": ("ready", "failed", "draining"),
    "ready": ("draining", "failed"),
    "draining": ("ready", "declared", "failed"),
    "failed": ("declared",),
}


class OwnEngine(Engine, Protocol):
    """An engine as its owner sees it."""

    @property
    def metrics(self) -> Metrics: ...

    async def wait_ready(self) -> None:
        """Raises OctavoError if it never will be."""
        ...

    async def wait_dead(self) -> OctavoError: ...


class Life:
    """One version as it was declared once. A change of its declaration begins another life."""

    def __init__(self, model: str, version: int, config: EngineConfig, now: float) -> None:
        self.model = model
        self.version = version
        self.config = config
        self.state: State = "declared"
        self.since = now
        self.used_at: float | None = None  # when a request last ended
        self.engine: OwnEngine | None = None
        self.max_model_len: int | None = None  # known once it was loaded
        self.needs: int | None = None  # bytes; None: not measured yet
        self.reason: str | None = None  # why it failed
        self.failures = 0  # in a row
        self.retry_at = 0.0
        self.wanted = False  # it should be loaded
        self.since_wanted = now
        self.by_requests = False  # and for no other reason than that requests wait for it
        self.gentle = False  # but not at the cost of another
        self.leases = 0  # requests that use it
        self.waiters = 0  # requests that wait for it
        self.ending = False  # draining is over: its processes end
        self.displaced = False  # it drains to make room, so its own requests wait
        self.retired = False  # no longer declared, or declared differently

    def __repr__(self) -> str:
        return f"<{self} {self.state}>"

    def __str__(self) -> str:
        return f"{self.model}:{self.version}"

    @property
    def loaded(self) -> bool:
        """Whether it holds memory."""
        return self.state in ("loading", "ready", "draining")

    @property
    def used(self) -> bool:
        return bool(self.leases or self.waiters)

    def enter(self, state: State, now: float, reason: str | None = None) -> None:
        assert state in _AFTER[self.state], f"{self!r} cannot become {state}"
        self.state, self.since, self.reason = state, now, reason
        if state == "ready":
            self.failures = 0
            self.displaced = False
        if state == "failed":
            self.wanted = False
            self.failures += 1
            self.retry_at = now + min(_RETRY_SECONDS * 2 ** min(self.failures - 1, 16), _LONGEST_RETRY)
        if state in ("failed", "declared"):
            self.engine = None
            self.ending = self.displaced = False

    @property
    def idle_since(self) -> float:
        return self.since if self.used_at is None else max(self.since, self.used_at)

    def want(self, now: float, *, by_requests: bool = False, gentle: bool = False) -> bool:
        """Whether that changes anything."""
        known = self.wanted, self.by_requests, self.gentle
        if not self.wanted:
            self.wanted, self.since_wanted, self.by_requests, self.gentle = True, now, by_requests, gentle
        self.by_requests = self.by_requests and by_requests
        self.gentle = self.gentle and gentle
        return known != (self.wanted, self.by_requests, self.gentle)

    def take(self) -> None:
        """A request begins to use it."""
        assert self.state == "ready", self
        self.leases += 1

    def give_back(self, now: float) -> None:
        self.leases -= 1
        self.used_at = now


@dataclass(frozen=True, slots=True)
class Room:
    """What all models together may take. None: as much as there is."""

    memory: int | None = None
    models: int | None = None

    def lacks(self, life: Life, others: Iterable[Life]) -> str | None:
        """Why it does not fit beside the others; None if it does."""
        held = [each for each in others if each is not life]
        names = {each.model for each in held}
        if self.models is not None and life.model not in names and len(names) >= self.models:
            return f"{len(names)} models are loaded and max_loaded_models is {self.models}"
        taken = sum(each.needs or 0 for each in held)
        needs = life.needs or 0
        if self.memory is not None and taken + needs > self.memory:
            rest = f", of which {amount(taken)} are taken" if taken else ""
            return f"it needs about {amount(needs)} of memory and memory_budget is {amount(self.memory)}{rest}"
        return None

    def victims(self, life: Life, loaded: Collection[Life], willing: Sequence[Life]) -> list[Life] | None:
        """Who must go, of those that can, in their order, so that it fits; None if even all would not do."""
        rest = list(loaded)
        chosen: list[Life] = []
        for each in willing:
            if self.lacks(life, rest) is None:
                break
            rest.remove(each)
            chosen.append(each)
        if self.lacks(life, rest) is not None:
            return None
        for each in list(chosen):  # a large one may have made room enough by itself
            if self.lacks(life, [*rest, each]) is None:
                chosen.remove(each)
                rest.append(each)
        return chosen


def least_missed(lives: Iterable[Life], forever: Collection[str]) -> list[Life]:
    """Those that may go, the least recently used first; models that are meant to stay come last."""
    return sorted(lives, key=lambda life: (life.model in forever, life.idle_since, life.model, life.version))


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
