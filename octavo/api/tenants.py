"""Who a request is from, and what is left of that one's share: requests and tokens a minute, requests at a time.

Shares are counted on the event loop alone, so checking and taking are one step. Knows nothing of keys or HTTP.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from msgspec import Struct

from octavo.errors import Overloaded, RateLimited

Role = Literal["user", "admin"]
Clock = Callable[[], float]


class Share(Struct, frozen=True, kw_only=True):
    """What one tenant may use; None: as much as there is."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts and answers together
    concurrent_requests: int | None = None


class Bucket:
    """Holds a minute's worth at most and fills evenly. What is spent beyond that is a debt to be waited for."""

    def __init__(self, per_minute: int | None, clock: Clock) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._level = float(per_minute or 0)
        self._then = clock()

    def wait(self) -> float:
        """Seconds until it holds a whole unit; 0 if it does."""
        if self._per_minute is None:
            return 0.0
        return max(0.0, 1.0 - self._fill(self._per_minute)) * 60 / self._per_minute

    def spend(self, units: int) -> None:
        if self._per_minute is not None:
            self._level = self._fill(self._per_minute) - units

    def _fill(self, per_minute: int) -> float:
        then, self._then = self._then, self._clock()
        self._level = min(float(per_minute), self._level + (self._then - then) * per_minute / 60)
        return self._level


class Tenant:
    """The holder of a key or, without a name, everybody."""

    def __init__(
        self, name: str | None = None, role: Role = "admin", share: Share | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.name = name
        self.role = role
        self.running = 0
        self._clock = clock
        self._set(share or Share())

    def change(self, role: Role, share: Share) -> None:
        """Other rights from now on; an unchanged share keeps its state."""
        self.role = role
        if share != self.share:
            self._set(share)

    def _set(self, share: Share) -> None:
        self.share = share
        self._requests = Bucket(share.requests_per_minute, self._clock)
        self._tokens = Bucket(share.tokens_per_minute, self._clock)

    def check(self) -> None:
        """May another request begin? Raises RateLimited."""
        self._check_running(1)
        for bucket, limit, what in (
            (self._requests, self.share.requests_per_minute, "requests"),
            (self._tokens, self.share.tokens_per_minute, "tokens"),
        ):
            if seconds := math.ceil(bucket.wait()):
                message = f"This key may use {limit} {what} a minute; try again in {seconds} s."
                raise RateLimited(message, retry_after=seconds)

    @contextmanager
    def request(self, count: int = 1) -> Iterator[None]:
        """Count a request that `check` let pass, or those that it turned out to be besides. Raises RateLimited."""
        self._check_running(count)
        self._requests.spend(count)
        self.running += count
        try:
            yield
        finally:
            self.running -= count

    def _check_running(self, count: int) -> None:
        most = self.share.concurrent_requests
        if most is not None and self.running + count > most:
            message = f"This key may have {most} requests in flight at a time, of which each prompt is one."
            raise RateLimited(message, retry_after=1)

    def spend(self, tokens: int) -> None:
        self._tokens.spend(tokens)

    @contextmanager
    def charge(self, tokens: int) -> Iterator[None]:
        """Spend tokens on what begins now; they are given back if there turns out to be no room for it."""
        self.spend(tokens)
        try:
            yield
        except Overloaded:
            self.spend(-tokens)
            raise

    def salt(self, own: str | None) -> str | None:
        """What separates this tenant's blocks in the prefix cache from all others', and by `own` from one another."""
        return own if self.name is None else f"{self.name}\0{own or ''}"
