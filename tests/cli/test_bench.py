"""The benchmarks: their arithmetic, and `bench serve` against the real server with a scripted engine."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from fake_server import run, serving

from octavo.cli import bench_serve
from octavo.cli.bench_serve import Sample, note, summarize
from octavo.cli.event_client import ServerError
from octavo.cli.flags import Parser
from octavo.cli.main import main
from octavo.cli.measure import percentile, random_prompts
from octavo.errors import RequestFailed


def options(*arguments: str):
    parser = Parser("octavo bench serve", "", "")
    bench_serve.add_arguments(parser)
    return parser.parse(arguments)


def test_percentiles_lie_between_neighbours() -> None:
    assert [percentile([4, 1, 3, 2], percent) for percent in (0, 50, 100)] == [1, 2.5, 4]
    assert percentile(range(101), 99) == 99
    assert percentile([7], 90) == 7
    assert percentile([], 50) == 0


def test_random_prompts_repeat_with_their_seed_only() -> None:
    ids = range(100, 1000)
    first, again, other = (random_prompts(3, 16, ids, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({tuple(prompt) for prompt in first}) == 3
    assert all(token in ids for prompt in first for token in prompt)


def test_a_samples_times() -> None:
    sample = Sample(began=10.0)
    note(sample, {"choices": [{"text": "a"}]}, 10.5)
    note(sample, {"choices": [{"text": "b"}]}, 10.6)
    note(sample, {"choices": [{"text": "c"}]}, 10.8)
    note(sample, {"choices": [], "usage": {"completion_tokens": 3}}, 11.0)
    failed = Sample(began=10.0, error="x")
    results = summarize([sample, failed], input_len=5, duration=2.0)
    assert results["mean_ttft_ms"] == pytest.approx(500)
    assert results["mean_tpot_ms"] == pytest.approx(150)
    assert results["median_itl_ms"] == pytest.approx(150)
    assert results["mean_e2el_ms"] == pytest.approx(800)
    assert (results["completed"], results["failed"]) == (1, 1)
    assert (results["output_throughput"], results["total_token_throughput"]) == (1.5, 4.0)
    with pytest.raises(ServerError, match="broke"):
        note(sample, {"error": {"message": "broke"}}, 11.0)


@pytest.mark.parametrize("rate", ["inf", "200"])
def test_bench_serve_against_a_server(rate) -> None:
    async def scenario() -> None:
        engine = FakeEngine(reply=lambda prompt, _: "x" * 100)
        async with serving(engine, api_key=("k",)) as (_, port):
            chosen = options(
                "--num-prompts", "8", "--output-len", "5", "--max-concurrency", "3", "--request-rate", rate
            )
            bodies = [bench_serve.completion_body("fake-model", [1, 2, 3], chosen) for _ in range(8)]
            url = f"http://127.0.0.1:{port}/v1/completions"
            samples = await bench_serve.drive(url, bodies, {"authorization": "Bearer k"}, chosen)
            assert [sample.error for sample in samples] == [None] * 8
            assert {sample.output_tokens for sample in samples} == {5}
            assert {len(sample.gaps) for sample in samples} == {4}
            assert all(call["params"].ignore_eos for call in engine.calls)
            refused = await bench_serve.drive(url, bodies[:1], {}, chosen)
            assert refused[0].error is not None
            assert "HTTP 401" in refused[0].error

    run(scenario)


def test_a_stream_that_is_cut_counts_as_failed() -> None:
    async def scenario() -> None:
        async with serving(FakeEngine(error=RequestFailed("broke"), fail_after=2)) as (_, port):
            chosen = options("--output-len", "5")
            body = bench_serve.completion_body("fake-model", [1], chosen)
            (sample,) = await bench_serve.drive(f"http://127.0.0.1:{port}/v1/completions", [body], {}, chosen)
            assert sample.error == "ServerError: broke"

    run(scenario)


def test_the_report_holds_what_vllms_users_look_for(tmp_path: Path) -> None:
    samples = [Sample(began=0.0, first=0.1, ended=1.1, gaps=[0.1] * 10, output_tokens=11)]
    results = summarize(samples, input_len=5, duration=2.0)
    text = bench_serve.report(results)
    for line in ("Successful requests:", "Mean TTFT (ms):", "P99 TPOT (ms):", "Median ITL (ms):", "Mean E2EL (ms):"):
        assert line in text
    assert json.loads(json.dumps(results)) == results


def test_bench_latency_says_how_fast_and_what(smollm2, tmp_path: Path, capsys) -> None:
    file = tmp_path / "results.json"
    words = [
        "--num-iters-warmup",
        "0",
        "--num-iters",
        "2",
        "--batch-size",
        "2",
        "--input-len",
        "4",
        "--output-len",
        "3",
    ]
    assert main(["bench", "latency", "--dtype", "bfloat16", "--output-json", str(file), *words]) == 0
    results = json.loads(file.read_text())
    assert len(results["latencies"]) == 2
    assert results["output_tokens_per_second"] == pytest.approx(6 / results["avg_latency"])
    out = capsys.readouterr().out
    assert out.startswith("model: SmolLM2-135M-Instruct, format: gguf, dtype: bfloat16, device: ")
    assert f"Avg latency: {results['avg_latency']:.6f} seconds ({results['output_tokens_per_second']:.1f} output" in out


def test_no_server_is_one_clear_line(capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert main(["bench", "serve", "--base-url", f"http://127.0.0.1:{port}"]) == 1
    assert "is the server running?" in capsys.readouterr().err
