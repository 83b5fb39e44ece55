"""Flags come from config fields: the whole list is frozen here, so that a new one is a decision."""

from __future__ import annotations

import pytest

from octavo.cli import (
    bench_latency,
    bench_serve,
    bench_throughput,
    chat,
    completion,
    keys_new,
    plan,
    ps,
    pull,
    rm,
    run,
    serve,
    show,
    stop,
)
from octavo.cli import list as list_
from octavo.cli.flags import Parser, add_engine_flags, engine_config, given
from octavo.config import SECTIONS, EngineConfig, ServerConfig, parse_quantity
from octavo.errors import ConfigError

REPOSITORY_FLAGS = [
    "--config",
    "--model-repository",
    "--memory-budget",
    "--max-loaded-models",
    "--keep-alive",
    "--preload",
    "--no-preload",
]
ENGINE_FLAGS = [
    "--model",
    "--tokenizer",
    "--revision",
    "--served-model-name",
    "--dtype",
    "--load-format",
    "--max-model-len",
    "--max-logprobs",
    "--seed",
    "--chat-template",
    "--tool-call-parser",
    "--reasoning-parser",
    "--generation-config",
    "--download-dir",
    "--block-size",
    "--kv-cache-memory",
    "--kv-cache-dtype",
    "--gpu-memory-utilization",
    "--num-gpu-blocks-override",
    "--enable-prefix-caching",
    "--no-enable-prefix-caching",
    "--max-num-batched-tokens",
    "--max-num-seqs",
    "--long-prefill-token-threshold",
    "--scheduling-policy",
    "--async-scheduling",
    "--no-async-scheduling",
    "--watermark",
    "--max-num-queued-reqs",
    "--max-num-queued-tokens",
    "--device",
    "--distributed-executor-backend",
    "--num-threads",
    "--attention-backend",
    "--deterministic",
    "--no-deterministic",
    "--enforce-eager",
    "--no-enforce-eager",
    "--cudagraph-capture-sizes",
    "--quantization",
    "--swap-space",
    "--hang-timeout",
]
SERVER_FLAGS = [
    "--host",
    "--port",
    "--uds",
    "--ssl-keyfile",
    "--ssl-certfile",
    "--api-key",
    "--api-key-file",
    "--admin-port",
    "--admin-host",
    "--request-timeout",
    "--queue-timeout",
    "--shutdown-timeout",
    "--root-path",
    "--allowed-origins",
    "--data-dir",
    "--batch-concurrency",
    "--log-level",
    "--log-format",
    "--otlp-traces-endpoint",
]
OUTPUT_FLAGS = ["--output-json", "--bench-seed"]
FLAGS = {
    serve: [*ENGINE_FLAGS, *SERVER_FLAGS, *REPOSITORY_FLAGS],
    run: [
        *(flag for flag in ENGINE_FLAGS if flag != "--seed"),
        *("--system", "--temperature", "--top-p", "--top-k", "--max-tokens", "--seed", "--format", "--json-schema"),
        *("--verbose", "--no-history", "--url", "--local"),
    ],
    chat: [
        *(flag for flag in ENGINE_FLAGS if flag != "--seed"),
        *("--system", "--temperature", "--top-p", "--top-k", "--max-tokens", "--seed", "--format", "--json-schema"),
        *("--verbose", "--no-history", "--url", "--local"),
    ],
    plan: [*ENGINE_FLAGS, "--json", "--no-speed"],
    pull: ["--revision", "--download-dir"],
    list_: ["--json", "--download-dir"],
    show: ["--json", "--download-dir", "--template"],
    rm: ["--yes", "--download-dir"],
    ps: ["--all", "--json", "--url"],
    stop: ["--url"],
    completion: [],
    bench_latency: [
        *ENGINE_FLAGS,
        *OUTPUT_FLAGS,
        *("--input-len", "--output-len", "--batch-size", "--num-iters", "--num-iters-warmup"),
    ],
    bench_throughput: [*ENGINE_FLAGS, *OUTPUT_FLAGS, "--num-prompts", "--input-len", "--output-len"],
    keys_new: ["--file", "--role", "--requests-per-minute", "--tokens-per-minute", "--concurrent-requests"],
    bench_serve: [
        *OUTPUT_FLAGS,
        *("--base-url", "--model", "--api-key", "--num-prompts", "--input-len", "--output-len"),
        *("--request-rate", "--max-concurrency", "--temperature"),
    ],
}


def parser_of(verb) -> Parser:
    parser = Parser("octavo", verb.USAGE, verb.DESCRIPTION)
    verb.add_arguments(parser)
    return parser


@pytest.mark.parametrize("verb", list(FLAGS), ids=lambda verb: verb.__name__)
def test_the_list_of_flags_is_frozen(verb) -> None:
    flags = {flag for flag in parser_of(verb)._option_string_actions if flag.startswith("--")}
    assert flags == {*FLAGS[verb], "--help"}


def config(*arguments: str) -> EngineConfig:
    parser = Parser("octavo test", "", "")
    add_engine_flags(parser)
    return engine_config(parser.parse(arguments))


def test_flags_that_are_not_given_leave_the_configs_defaults() -> None:
    assert config() == EngineConfig()
    options = parser_of(serve).parse([])
    assert given(options, (*SECTIONS, ServerConfig)) == {}


def test_every_kind_of_value() -> None:
    chosen = config(
        *("--model", "m", "--max-model-len", "4K", "--kv-cache-memory=1.5GiB", "--dtype", "float32"),
        *("--no-enable-prefix-caching", "--watermark", "0.1", "--num-threads", "2"),
        *("--served-model-name", "a", "--served-model-name", "b,c"),
    )
    assert chosen.model.model == "m"
    assert chosen.model.max_model_len == 4096
    assert chosen.cache.kv_cache_memory == 3 * 2**29
    assert chosen.model.dtype == "float32"
    assert chosen.cache.enable_prefix_caching is False
    assert chosen.scheduler.watermark == 0.1
    assert chosen.execution.num_threads == 2
    assert chosen.model.served_model_name == ("a", "b,c")
    assert config("--max-model-len", "-1").model.max_model_len == -1
    assert config("--max-logprobs", "-1").model.max_logprobs == -1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-model-len", "4x"], "argument --max-model-len: '4x' is not a number with an optional suffix"),
        (["--num-threads", "two"], "argument --num-threads: 'two' is not a whole number"),
        (["--watermark", "x"], "argument --watermark: 'x' is not a number"),
        (
            ["--cudagraph-capture-sizes", "1,2,4"],
            "argument --cudagraph-capture-sizes: '1,2,4' is not a whole number; it takes all words up to the next flag",
        ),
        (["--dtype", "int3"], "argument --dtype: invalid choice: 'int3'"),
        (["--max-num-seq", "3"], "unknown argument --max-num-seq; did you mean --max-num-seqs?"),
        (["--served_model_name", "x"], "unknown argument --served_model_name; did you mean --served-model-name?"),
        (["--len-max-model", "3"], "unknown argument --len-max-model; did you mean --max-model-len?"),
        (["--what"], "unknown argument --what"),
        (["stray"], "unknown argument stray"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(arguments, message, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        config(*arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"octavo test: {message}")
    assert error.endswith("\n(see octavo test --help)\n")
    assert "usage" not in error


def test_sizes_are_text_in_python_too() -> None:
    assert EngineConfig.of(kv_cache_memory="1.5GiB", swap_space="4GiB", max_model_len="4k") == EngineConfig.of(
        kv_cache_memory=3 * 2**29, swap_space=2**32, max_model_len=4000
    )
    with pytest.raises(ConfigError, match="kv_cache_memory: 'much' is not a number with an optional suffix"):
        EngineConfig.of(kv_cache_memory="much")
    with pytest.raises(ConfigError, match="max_num_seqs: Expected `int`, got `str`"):
        EngineConfig.of(max_num_seqs="8")  # no size


def test_a_number_of_gib_is_no_swap_space() -> None:
    with pytest.raises(ConfigError, match="swap_space is in bytes, and 4 hold nothing; for gibibytes write 4GiB"):
        config("--swap-space", "4")
    assert config("--swap-space", "0").cache.swap_space == 0
    assert config("--swap-space", "1MiB").cache.swap_space == 2**20


@pytest.mark.parametrize(
    "device", ["rocm", "gpu", "cuda:", "cuda:-1", "cuda:128", "CPU", "mps", "", "cuda:00", "cuda\n"]
)
def test_what_is_no_device_is_refused_before_anything_is_loaded(device: str) -> None:
    with pytest.raises(ConfigError, match="is not a device; use auto, cpu, cuda or cuda:N"):
        config("--device", device)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:15"])
def test_devices(device: str) -> None:
    assert config("--device", device).execution.device == device


def test_values_are_checked_by_the_config() -> None:
    with pytest.raises(ConfigError, match="block_size must be a power of two"):
        config("--block-size", "24")
    with pytest.raises(ConfigError, match="max_num_seqs must be at least 1, not 0"):
        config("--max-num-seqs", "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-model-len", "-5"], "max_model_len must be at least 2, or -1, not -5"),
        (["--max-model-len=-1k"], "max_model_len must be at least 2, or -1, not -1000"),
        (["--max-model-len", "0"], "max_model_len must be at least 2, or -1, not 0"),
        (["--max-logprobs=-2"], "max_logprobs must be at least 0, or -1, not -2"),
        (["--kv-cache-memory", "-1"], "kv_cache_memory must be at least 1, not -1"),
        (["--watermark", "0.6"], "watermark must be at most 0.5, not 0.6"),
        (["--num-threads", "5000"], "num_threads must be at most 4096, not 5000"),
        (["--watermark", "nan"], "watermark must be at"),
    ],
)
def test_a_number_out_of_range_is_told_its_bound(arguments, message) -> None:
    with pytest.raises(ConfigError) as caught:
        config(*arguments)
    assert caught.value.message.startswith(message)


def test_a_model_is_named_once() -> None:
    options = parser_of(serve).parse(["a", "--model", "b"])
    with pytest.raises(ConfigError, match="two models: a and --model b"):
        engine_config(options, options.model_argument)
    options = parser_of(serve).parse(["a", "--model", "a"])
    assert engine_config(options, options.model_argument).model.model == "a"


def test_a_flag_of_many_values_takes_one_at_a_time() -> None:
    options = parser_of(serve).parse(["--api-key", "one", "--api-key", "two", "gpt2"])
    assert options.model_argument == "gpt2"
    assert ServerConfig(**given(options, (ServerConfig,))).api_key == ("one", "two")


def test_a_flag_of_numbers_takes_them_all() -> None:
    assert config("--cudagraph-capture-sizes", "1", "2", "--max-num-seqs", "4").execution.cudagraph_capture_sizes == (
        1,
        2,
    )
    for sizes in (["8", "0"], ["129"]):
        with pytest.raises(ConfigError, match="must be at least 1 and at most --max-num-seqs 128"):
            config("--cudagraph-capture-sizes", *sizes)


def test_help_shows_defaults_by_group(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        parser_of(serve).parse(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: octavo [MODEL] [flags]" in text
    assert "The paged KV cache: --block-size N tokens in a block (default: 16)" in text
    assert "--no-enable-prefix-caching reuse the KV blocks of equal prompt beginnings (default: on)" in text
    assert "of this and its number in the order (default: 0)" in text
    assert text.count("(for more, give the flag again)") == 3


@pytest.mark.parametrize(("text", "value"), [("1.5k", 1500), ("-1", -1), ("1.0", 1), ("0.1m", 100_000), ("1.3K", 1331)])
def test_a_fraction_may_come_with_a_suffix(text: str, value: int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["-1.5", "0.5"])
def test_a_quantity_that_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a whole number"):
        parse_quantity(text)
