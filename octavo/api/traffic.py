"""Requests over HTTP, counted by what became of them: the outside of the engine's own metrics.

Each request is counted once, when it is over. Label values come from fixed sets (routes, statuses, outcomes), so no
client can grow them.
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.registry import RestrictedRegistry

#: complete: the client has all of it, be it an error; failed: begun, then cut; left: the client went away.
Outcome = Literal["complete", "failed", "left"]


class Traffic:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ["path", "status", "outcome"]
        self._requests = Counter("octavo:http_requests", "Requests over HTTP.", labels, registry=self._registry)

    def count(self, path: str, status: int, outcome: Outcome) -> None:
        """`path`: the route's pattern, or "none"; status 0: nothing was sent."""
        self._requests.labels(path=path, status=str(status), outcome=outcome).inc()

    def render(self) -> bytes:
        """The Prometheus text format, without the times at which counters were made."""
        names = RestrictedRegistry(["octavo:http_requests_total"], self._registry)
        return generate_latest(names)
