"""Counters, gauges and histograms, named once: the names, labels and buckets that vLLM's dashboards expect.

Lives where requests enter and leave (`accept`, `begin`, `finish`, `observe`); the core only reports plain
`EngineStats`.
Label values come from fixed sets, so no client can grow the registry. `Throughput` is the same for people: a line for
the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Protocol, TypeVar

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from octavo.config import CacheConfig
from octavo.footprint import footprint
from octavo.plan import Capacity
from octavo.request import FinishReason, RequestMetrics

M = TypeVar("M", Gauge, Counter)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT = (
    .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_ITL = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)  # fmt: skip
_LATENCY = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)  # fmt: skip
_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_N = (1, 2, 5, 10, 20)
_PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)

FINISHED_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "error")


class EngineStats(Struct, frozen=True, array_like=True):
    """The core after a step. Counters are totals since its start."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    preemptions: int = 0
    step_tokens: int = 0  # computed in this step; 0: no step was run
    refused_requests: int = 0  # because too many requests waited,
    refused_tokens: int = 0  # or too many tokens


def _token_buckets(longest: int) -> tuple[float, ...]:
    buckets: list[float] = []
    scale = 1
    while scale <= longest:
        buckets += [scale * digit for digit in (1, 2, 5) if scale * digit <= longest]
        scale *= 10
    return tuple(buckets)


class Families(Protocol):
    """What has metrics to show."""

    def families(self) -> Iterable[Metric]: ...


class _Together(CollectorRegistry):
    """What several engines have to show: each family once, with the samples of all."""

    def __init__(self, sources: Iterable[Families]) -> None:
        super().__init__()
        self._sources = list(sources)

    def collect(self) -> Iterable[Metric]:
        together: dict[str, Metric] = {}
        for source in self._sources:
            for family in source.families():
                if family.name in together:
                    together[family.name].samples += family.samples
                else:
                    together[family.name] = family
        return together.values()


def render(sources: Iterable[Families]) -> bytes:
    """The Prometheus text format."""
    return generate_latest(_Together(sources))


class Metrics:
    """One engine's metrics in a registry of their own. longest: tokens of the longest request, for the buckets.

    version: of the model; several may be loaded under one name.
    """

    def __init__(self, model_name: str, longest: int, version: int = 1) -> None:
        self.registry = CollectorRegistry()
        self.name = model_name
        self._labels = {"model_name": model_name, "engine": "0", "version": str(version)}
        self._families: dict[str, Gauge | Counter] = {}
        self._pid: int | None = None
        self._last = EngineStats()
        tokens = _token_buckets(longest)
        self.running = self._gauge("num_requests_running", "Sequences in the running batch.")
        self.waiting = self._gauge("num_requests_waiting", "Sequences waiting to be scheduled.")
        self.kv_usage = self._gauge("kv_cache_usage_perc", "Share of KV-cache blocks in use; 1 is full.")
        self.queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self.hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self.preemptions = self._counter("num_preemptions", "Sequences preempted.")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of started requests.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.accepted = self._counter("requests_accepted", "Requests taken: completed + errored + cancelled + open.")
        self.completed = self._counter("requests_completed", "Requests whose output is whole.")
        self.errored = self._counter("requests_errored", "Requests that ended in an error.")
        self.cancelled = self._counter("requests_cancelled", "Requests whose caller gave them up.")
        self.resumed = self._counter("requests_resumed", "Times that a request went on in another core process.")
        self.core_restarts = self._counter("core_restarts", "Core processes that replaced one that died or hung.")
        self._success: dict[FinishReason, Counter] = {
            reason: self._counter("request_success", "Finished requests.", finished_reason=reason)
            for reason in FINISHED_REASONS
        }
        self.iteration_tokens = self._histogram("iteration_tokens_total", "Tokens computed in a step.", _ITERATION)
        self.ttft = self._histogram("time_to_first_token_seconds", "Time to the first token.", _TTFT)
        self.itl = self._histogram("inter_token_latency_seconds", "Time between tokens of a sequence.", _ITL)
        self.tpot = self._histogram("request_time_per_output_token_seconds", "Mean time per later token.", _ITL)
        self.e2e = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", _LATENCY)
        self.queue_time = self._histogram("request_queue_time_seconds", "From arrival to the first step.", _LATENCY)
        self.prefill_time = self._histogram(
            "request_prefill_time_seconds", "From the first step to the first token.", _LATENCY
        )
        self.decode_time = self._histogram("request_decode_time_seconds", "From the first token to the last.", _LATENCY)
        self.inference_time = self._histogram(
            "request_inference_time_seconds", "From the first step to the last token.", _LATENCY
        )
        self.prompt_length = self._histogram("request_prompt_tokens", "Prompt tokens per request.", tokens)
        self.output_length = self._histogram("request_generation_tokens", "Output tokens per request.", tokens)
        self.max_tokens = self._histogram("request_params_max_tokens", "max_tokens per request.", tokens)
        self.n = self._histogram("request_params_n", "n per request.", _N)
        self.longest_output = self._histogram(
            "request_max_num_generation_tokens", "Tokens of a request's longest output.", tokens
        )
        self.prefilled = self._histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens per request that no cache held.", tokens
        )
        self.request_preemptions = self._histogram(
            "request_num_preemptions", "Times that a request was preempted.", _PREEMPTIONS
        )
        self.cached_tokens = self._counter("prompt_tokens_cached", "Prompt tokens found in a cache.")
        self._prompt_from = {
            source: self._counter("prompt_tokens_by_source", "Prompt tokens by where they came from.", source=source)
            for source in ("local_compute", "local_cache_hit", "external_kv_transfer")
        }
        self._waiting_for = {
            reason: self._gauge("num_requests_waiting_by_reason", "Sequences waiting, by what for.", reason=reason)
            for reason in ("capacity", "deferred")
        }
        self._refused = {
            reason: self._counter("admission_rejections", "Requests that the queue had no room for.", reason=reason)
            for reason in ("max_num_queued_reqs", "max_num_queued_tokens")
        }
        self.compute_seconds = self._counter("compute_seconds", "Time that steps took.", "octavo")

    def watch(self, pid: int | None) -> None:
        """The process that computes, if it is known."""
        self._pid = pid

    def families(self) -> Iterator[Metric]:
        """Less the time at which each counter and histogram was made, which would be a third of all lines."""
        for family in self.registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
        if self._pid is not None and (used := footprint(self._pid)) is not None:
            names, values = list(self._labels), list(self._labels.values())
            memory = GaugeMetricFamily(
                "octavo:engine_resident_memory_bytes", "Memory of the engine's processes.", labels=names
            )
            memory.add_metric(values, used.resident_bytes)
            time = CounterMetricFamily(
                "octavo:engine_cpu_seconds", "Processor time of the engine's processes.", labels=names
            )
            time.add_metric(values, used.cpu_seconds)
            yield from (memory, time)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return render([self])

    @property
    def stats(self) -> EngineStats:
        """The core's last report."""
        return self._last

    def total(self, counter: str) -> float:
        """What a counter has come to."""
        value = self.registry.get_sample_value(f"vllm:{counter}_total", self._labels)
        assert value is not None, f"there is no counter {counter}"
        return value

    def totals(self) -> dict[str, float]:
        """What all counters have come to, and the sums and counts of all histograms."""
        samples = [sample for family in self.registry.collect() for sample in family.samples]
        return {
            sample.name.removeprefix("vllm:").removesuffix("_total"): sample.value
            for sample in samples
            if sample.name.endswith(("_total", "_sum", "_count")) and sample.labels == self._labels
        }

    def describe_cache(self, config: CacheConfig, capacity: Capacity) -> None:
        """How the KV cache is set up, once that is known."""
        facts = {**asdict(config), "num_gpu_blocks": capacity.num_blocks}
        labels = {**self._labels, **{name: str(value) for name, value in facts.items()}}
        info = Gauge("vllm:cache_config_info", "How the KV cache is set up.", list(labels), registry=self.registry)
        info.labels(**labels).set(1)

    def observe(self, stats: EngineStats) -> None:
        """A report of the core."""
        last, self._last = self._last, stats
        self.running.set(stats.running)
        self.waiting.set(stats.waiting)
        self._waiting_for["capacity"].set(stats.waiting)
        self.kv_usage.set(stats.kv_cache_usage)
        self.queries.inc(stats.prefix_cache_queries - last.prefix_cache_queries)
        self.hits.inc(stats.prefix_cache_hits - last.prefix_cache_hits)
        self.preemptions.inc(stats.preemptions - last.preemptions)
        for reason, count, before in (
            ("max_num_queued_reqs", stats.refused_requests, last.refused_requests),
            ("max_num_queued_tokens", stats.refused_tokens, last.refused_tokens),
        ):
            self._refused[reason].inc(count - before)
        if stats.step_tokens:
            self.iteration_tokens.observe(stats.step_tokens)

    def restart(self) -> None:
        """Another core takes over: its totals begin at 0."""
        self.core_restarts.inc()
        self.watch(None)
        self._last = EngineStats()
        self.observe(self._last)

    def spend(self, seconds: float, joules: float | None) -> None:
        """A step was computed."""
        self.compute_seconds.inc(seconds)
        if joules is not None:
            self._counter("energy_joules", "What the machine used during steps.", "octavo").inc(joules)

    def accept(self) -> None:
        """A request was taken; exactly one `finish` follows."""
        self.accepted.inc()

    def begin(self, prompt_tokens: int, max_tokens: int, n: int) -> None:
        """The first tokens of a request were computed."""
        self.prompt_tokens.inc(prompt_tokens)
        self.prompt_length.observe(prompt_tokens)
        self.max_tokens.observe(max_tokens)
        self.n.observe(n)

    def prefill(self, prompt_tokens: int, cached_tokens: int) -> None:
        """A request's prompt is computed: its first token is there."""
        self.cached_tokens.inc(cached_tokens)
        self._prompt_from["local_cache_hit"].inc(cached_tokens)
        self._prompt_from["local_compute"].inc(prompt_tokens - cached_tokens)
        self.prefilled.observe(prompt_tokens - cached_tokens)

    def finish(self, reason: FinishReason, times: RequestMetrics, output_tokens: int, longest: int) -> None:
        """A request left; `times.finished_time` is set. longest: tokens of the longest of its outputs."""
        self._success[reason].inc()
        {"abort": self.cancelled, "error": self.errored}.get(reason, self.completed).inc()
        end = times.finished_time
        if reason in ("abort", "error") or end is None:
            return
        self.output_length.observe(output_tokens)
        self.longest_output.observe(longest)
        self.request_preemptions.observe(times.preemptions)
        self.e2e.observe(end - times.arrival_time)
        started, first = times.first_scheduled_time, times.first_token_time
        if started is None or first is None:
            return
        self.queue_time.observe(started - times.arrival_time)
        self.prefill_time.observe(first - started)
        self.decode_time.observe(end - first)
        self.inference_time.observe(end - started)
        if output_tokens > 1:
            self.tpot.observe((end - first) / (output_tokens - 1))

    def _gauge(self, name: str, help: str, **labels: str) -> Gauge:
        return self._with_labels(Gauge, f"vllm:{name}", help, labels)

    def _counter(self, name: str, help: str, prefix: str = "vllm", **labels: str) -> Counter:
        return self._with_labels(Counter, f"{prefix}:{name}", help, labels)

    def _with_labels(self, kind: type[M], name: str, help: str, labels: Mapping[str, str]) -> M:
        """The metric with these labels; its family is made with the first."""
        if name not in self._families:
            self._families[name] = kind(name, help, [*self._labels, *labels], registry=self.registry)
        metric = self._families[name].labels(**self._labels, **labels)
        assert isinstance(metric, kind)
        return metric

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        metric = Histogram(f"vllm:{name}", help, list(self._labels), registry=self.registry, buckets=buckets)
        return metric.labels(**self._labels)


class Throughput:
    """What became of the counters since the last look, in the words that vLLM's users know."""

    def __init__(self, metrics: Metrics, now: float) -> None:
        self._metrics = metrics
        self._then = now
        self._totals = self._count()
        self._hit_rate = 0.0  # among the prompt tokens of the last interval that had any

    def line(self, now: float) -> str | None:
        """Rates since the last call and how things stand; None if nothing ran. `now` in seconds on any one clock."""
        seconds, self._then = now - self._then, now
        before, self._totals = self._totals, self._count()
        prompt, generated, queries, hits = (after - was for after, was in zip(self._totals, before, strict=True))
        if queries:
            self._hit_rate = hits / queries
        stats = self._metrics.stats
        if not (prompt or generated or stats.running or stats.waiting):
            return None
        return (
            f"Avg prompt throughput: {prompt / seconds:.1f} tokens/s, "
            f"Avg generation throughput: {generated / seconds:.1f} tokens/s, "
            f"Running: {stats.running} reqs, Waiting: {stats.waiting} reqs, "
            f"KV cache usage: {stats.kv_cache_usage:.1%}, Prefix cache hit rate: {self._hit_rate:.1%}"
        )

    def _count(self) -> list[float]:
        names = ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits")
        return [self._metrics.total(name) for name in names]
