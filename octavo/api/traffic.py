"""What the server as a whole has done: answers over HTTP, what each key used, lines of batches, and its process.

The outside of the engines' own metrics. A request is counted once, when it is over. Label values come from fixed sets
(routes, statuses, outcomes, names of keys), so no client can grow them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, ProcessCollector

#: complete: the client has all of it, be it an error; failed: begun, then cut; left: the client went away.
Outcome = Literal["complete", "failed", "left"]


class Traffic:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        labels = ["path", "status", "outcome"]
        self._requests = Counter("octavo:http_requests", "Requests over HTTP.", labels, registry=self._registry)
        self._tenant_requests = self._of_tenants("requests", "Requests to models.")
        self._tenant_prompt = self._of_tenants("prompt_tokens", "Prompt tokens.")
        self._tenant_cached = self._of_tenants("cached_tokens", "Prompt tokens found in a cache.")
        self._tenant_output = self._of_tenants("generation_tokens", "Tokens generated.")
        self._tenant_seconds = self._of_tenants("compute_seconds", "Its share of the time that steps took.")
        self._tenant_joules = self._of_tenants("energy_joules", "Its share of what the machine used during them.")
        lines = Counter("octavo:batch_lines", "Lines of batches that are done.", ["outcome"], registry=self._registry)
        self._lines = {outcome: lines.labels(outcome) for outcome in ("completed", "failed")}
        self._open_batches = Gauge("octavo:open_batches", "Batches that are not over.", registry=self._registry)
        refused = Counter(
            "vllm:admission_rejections", "Requests that there was no room for.", ["reason"], registry=self._registry
        )
        self._refused = refused.labels("max_num_queued_reqs")

    def _of_tenants(self, name: str, help: str) -> Counter:
        return Counter(f"octavo:tenant_{name}", help, ["tenant"], registry=self._registry)

    def families(self) -> Iterator[Metric]:
        """Less the time at which each counter was made."""
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family

    def count(self, path: str, status: int, outcome: Outcome) -> None:
        """`path`: the route's pattern, or "none"; status 0: nothing was sent."""
        self._requests.labels(path=path, status=str(status), outcome=outcome).inc()

    def refuse(self) -> None:
        """A request that would have been one too many."""
        self._refused.inc()

    def spend(
        self,
        tenant: str,
        *,
        prompt_tokens: int,
        cached_tokens: int,
        output_tokens: int,
        compute_seconds: float,
        energy_joules: float | None,
    ) -> None:
        """What a request to a model used, whether or not it had an answer. tenant: a key's name; empty: anybody's."""
        self._tenant_requests.labels(tenant).inc()
        self._tenant_prompt.labels(tenant).inc(prompt_tokens)
        self._tenant_cached.labels(tenant).inc(cached_tokens)
        self._tenant_output.labels(tenant).inc(output_tokens)
        self._tenant_seconds.labels(tenant).inc(compute_seconds)
        if energy_joules is not None:
            self._tenant_joules.labels(tenant).inc(energy_joules)

    def finish_line(self, failed: bool) -> None:
        """A line of a batch has its answer."""
        self._lines["failed" if failed else "completed"].inc()

    def set_open_batches(self, count: int) -> None:
        self._open_batches.set(count)
