"""What dashboards read and what people read are the same counts."""

from __future__ import annotations

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from octavo.api.traffic import Traffic
from octavo.config import CacheConfig
from octavo.metrics import EngineStats, Metrics, Throughput, render
from octavo.plan import Capacity
from octavo.request import RequestMetrics

#: vLLM's names that mean something here.
NAMES = """
num_requests_running num_requests_waiting num_requests_waiting_by_reason kv_cache_usage_perc cache_config_info
prefix_cache_queries prefix_cache_hits num_preemptions prompt_tokens generation_tokens prompt_tokens_by_source
prompt_tokens_cached request_success admission_rejections time_to_first_token_seconds inter_token_latency_seconds
request_time_per_output_token_seconds e2e_request_latency_seconds request_queue_time_seconds
request_inference_time_seconds request_prefill_time_seconds request_decode_time_seconds request_prompt_tokens
request_generation_tokens request_max_num_generation_tokens request_params_max_tokens
request_prefill_kv_computed_tokens iteration_tokens_total request_params_n request_num_preemptions
"""


def families(text: bytes) -> dict[str, Metric]:
    """By name; none may be there twice."""
    found = list(text_string_to_metric_families(text.decode()))
    assert len({family.name for family in found}) == len(found)
    assert text.count(b"# TYPE ") == len(found)
    return {family.name: family for family in found}


def engine(name: str, version: int = 1) -> Metrics:
    metrics = Metrics(name, longest=100, version=version)
    metrics.describe_cache(CacheConfig(), Capacity(num_blocks=7, block_size=16, max_model_len=100, vocab_size=9))
    return metrics


def test_every_name_is_there_once_for_all_engines() -> None:
    engines = [engine("a"), engine("a", 2), engine("b")]
    found = families(render([*engines, Traffic()]))
    assert {f"vllm:{name}" for name in NAMES.split()} <= found.keys()
    assert {"octavo:http_requests", "octavo:tenant_compute_seconds", "process_resident_memory_bytes"} <= found.keys()
    running = found["vllm:num_requests_running"].samples
    expected = [("a", "1"), ("a", "2"), ("b", "1")]
    assert [(sample.labels["model_name"], sample.labels["version"]) for sample in running] == expected
    (info, *_) = found["vllm:cache_config_info"].samples
    assert (info.value, info.labels["num_gpu_blocks"], info.labels["block_size"]) == (1.0, "7", "16")


def test_prompt_tokens_are_told_apart_by_where_they_came_from() -> None:
    metrics = engine("a")
    metrics.prefill(prompt_tokens=10, cached_tokens=4)
    metrics.prefill(prompt_tokens=5, cached_tokens=0)
    found = families(metrics.render())
    values = {sample.labels["source"]: sample.value for sample in found["vllm:prompt_tokens_by_source"].samples}
    assert values == {"local_compute": 11, "local_cache_hit": 4, "external_kv_transfer": 0}
    assert [sample.value for sample in found["vllm:prompt_tokens_cached"].samples] == [4]


def test_refusals_and_preemptions_are_counted() -> None:
    metrics = engine("a")
    metrics.observe(EngineStats(refused_requests=2, refused_tokens=1))
    metrics.observe(EngineStats(refused_requests=2, refused_tokens=3))
    metrics.restart()
    metrics.observe(EngineStats(refused_requests=1))
    times = RequestMetrics(arrival_time=0.0, finished_time=1.0, preemptions=2)
    metrics.accept()
    metrics.finish("stop", times, output_tokens=9, longest=5)
    traffic = Traffic()
    traffic.refuse()
    found = families(render([metrics, traffic]))
    refused = [(sample.labels["reason"], sample.value) for sample in found["vllm:admission_rejections"].samples]
    assert refused == [("max_num_queued_reqs", 3), ("max_num_queued_tokens", 3), ("max_num_queued_reqs", 1)]
    sums = {sample.name: sample.value for family in found.values() for sample in family.samples}
    assert sums["vllm:request_num_preemptions_sum"] == 2
    assert sums["vllm:request_max_num_generation_tokens_sum"] == 5


def test_energy_is_not_there_until_it_was_measured() -> None:
    metrics = engine("a")
    metrics.spend(0.5, None)
    assert "octavo:energy_joules" not in families(metrics.render())
    metrics.spend(0.25, 3.0)
    metrics.spend(0.25, None)
    assert metrics.registry.get_sample_value("octavo:energy_joules_total", metrics._labels) == 3.0
    assert metrics.registry.get_sample_value("octavo:compute_seconds_total", metrics._labels) == 1.0


def test_dashboards_get_counts_and_no_times_of_creation() -> None:
    metrics = Metrics("m", longest=100)
    metrics.begin(prompt_tokens=7, max_tokens=3, n=1)
    samples = [
        sample for family in text_string_to_metric_families(metrics.render().decode()) for sample in family.samples
    ]
    names = {sample.name for sample in samples}
    assert {"vllm:prompt_tokens_total", "vllm:num_requests_running", "vllm:time_to_first_token_seconds_bucket"} < names
    assert not [name for name in names if name.endswith("_created")]
    assert [sample.value for sample in samples if sample.name == "vllm:prompt_tokens_total"] == [7.0]
    assert metrics.total("prompt_tokens") == 7.0


def test_the_log_says_how_fast_it_went_since_the_last_line() -> None:
    metrics = Metrics("m", longest=100)
    metrics.begin(prompt_tokens=1000, max_tokens=3, n=1)
    throughput = Throughput(metrics, now=50.0)
    assert throughput.line(60.0) is None, "what happened before is not told"
    metrics.begin(prompt_tokens=40, max_tokens=3, n=1)
    metrics.generation_tokens.inc(5)
    metrics.observe(
        EngineStats(running=2, waiting=1, kv_cache_usage=0.125, prefix_cache_queries=40, prefix_cache_hits=16)
    )
    assert throughput.line(70.0) == (
        "Avg prompt throughput: 4.0 tokens/s, Avg generation throughput: 0.5 tokens/s, Running: 2 reqs, "
        "Waiting: 1 reqs, KV cache usage: 12.5%, Prefix cache hit rate: 40.0%"
    )
    metrics.generation_tokens.inc(30)
    metrics.observe(EngineStats(prefix_cache_queries=40, prefix_cache_hits=16))
    last = throughput.line(75.0)
    assert last is not None, "what ended since the last line is still told"
    assert "generation throughput: 6.0 tokens/s, Running: 0" in last
    assert last.endswith("hit rate: 40.0%")
    assert throughput.line(80.0) is None
