"""What dashboards read and what people read are the same counts."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from octavo.metrics import EngineStats, Metrics, Throughput


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
