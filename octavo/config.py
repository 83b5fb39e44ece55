"""Frozen configuration: the one source of every flag and default.

Each field of a config class is also a command-line flag (`max_num_seqs` is `--max-num-seqs`) and a keyword argument of
`LLM`; its help text and choices stand beside it in the metadata. Names are vLLM's where it has the same thing. Knows
nothing of argparse, torch or files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from decimal import Decimal
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from octavo.errors import ConfigError

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Quantization = Literal["auto", "none", "int4", "int8", "fp8"]
LoadFormat = Literal["auto", "safetensors", "gguf", "dummy"]
SchedulingPolicy = Literal["fcfs", "priority"]
LogFormat = Literal["text", "json"]
AttentionBackend = Literal["auto", "triton", "flash_attn", "flashinfer"]
KVCacheDtype = Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"]
ExecutorBackend = Literal["uni", "mp"]
ToolCallParser = Literal["auto", "deepseek_v3", "generic", "glm45", "granite", "hermes", "kimi_k2", "llama3_json",
                         "minimax_m2", "mistral", "openai", "phi4_mini_json", "pythonic", "qwen3_coder"]  # fmt: skip
ReasoningParser = Literal["auto", "none", "cohere", "deepseek_r1", "granite", "mistral", "openai_gptoss", "qwen3",
                          "seed_oss", "think"]  # fmt: skip

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_SUFFIXES = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_quantity(text: str) -> int:
    """A whole number, or any with a suffix: 4096, 4k (4,000), 4K or 4KiB (4,096), 1.3GiB, 2GB. Raises ConfigError."""
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(iB|B)?", text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a number with an optional suffix such as 4k, 4096 or 1.5GiB")
    number, letter, unit = match.groups()
    binary = unit == "iB" or (unit is None and letter.isupper())
    scale = (_BINARY_SUFFIXES if binary else _SUFFIXES)[letter.lower()] if letter else 1
    quantity = Decimal(number) * scale
    if not letter and quantity != int(quantity):
        raise ConfigError(f"{text!r} is not a whole number")
    return int(quantity)


def _flag(help: str, default: Any = None, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and how its weights and texts are read."""

    model: str | None = _flag("folder, .gguf file or hub id; none: the embedded SmolLM2-135M-Instruct", positional=True)
    tokenizer: str | None = _flag("folder, .gguf file or hub id that has another tokenizer")
    revision: str | None = _flag("branch, tag or commit of a hub id")
    served_model_name: tuple[str, ...] = _flag("name that clients may use for the model", ())
    dtype: Dtype = _flag(
        "data type of weights and activations; auto: 16 bits; float32 on a CPU that cannot multiply bfloat16",
        "auto",
    )
    quantization: Quantization = _flag(
        "bring the weights of an unquantized checkpoint to few bits while loading: int4, int8, or on a GPU fp8; "
        "auto: as the files have them; none: in 16 bits whatever a GGUF file has",
        "auto",
    )
    load_format: LoadFormat = _flag("auto looks at the files; dummy: random weights of the given config", "auto")
    max_model_len: int | None = _flag(
        "longest prompt + output in tokens; default or -1: what the model and memory allow",
        None,
        quantity=True,
        also=-1,
    )
    max_logprobs: int = _flag("most logprobs a request may ask for; -1: any number", 20, also=-1)
    seed: int = _flag(
        "of dummy weights, and of requests that bring none: each gets one made of this and its number in the order", 0
    )
    chat_template: str | None = _flag("file with a Jinja chat template, instead of the model's own")
    tool_call_parser: ToolCallParser = _flag("how the model writes tool calls; auto: as its chat template says", "auto")
    reasoning_parser: ReasoningParser = _flag(
        "how the model marks its reasoning; auto: as its chat template says; none: reasoning stays in the content",
        "auto",
    )
    generation_config: str = _flag("auto: take sampling defaults from the model; none: do not", "auto")
    download_dir: str | None = _flag("where models from the hub are kept; default: the hub's own cache")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The paged KV cache."""

    block_size: int = _flag("tokens in a block", 16)
    kv_cache_memory: int | None = _flag(
        "bytes for the KV cache, such as 4GiB; default: on a CPU 1GiB, or what a full context needs if that is more, "
        "but at most half of the free memory; on a GPU what the weights leave of --gpu-memory-utilization",
        None,
        quantity=True,
    )
    kv_cache_dtype: KVCacheDtype = _flag(
        "how a GPU keeps keys and values; fp8 (fp8_e4m3): half the bytes of 16 bits to keep and to read, a little less "
        "exact; fp8_e5m2: less exact still, but older GPUs have it too; auto: in the data type of the model",
        "auto",
    )
    swap_space: int | None = _flag(
        "bytes of the machine's memory, such as 8GiB, where what preempted sequences have computed waits instead of "
        "being computed again; default: on a GPU 4GiB, or a quarter of the free memory if that is less; on a CPU 0",
        None,
        quantity=True,
    )
    gpu_memory_utilization: float = _flag("share of a GPU's memory to use for weights, activations and cache", 0.92)
    num_gpu_blocks_override: int | None = _flag("number of KV blocks, instead of sizing them (for tests)")
    enable_prefix_caching: bool = _flag("reuse the KV blocks of equal prompt beginnings", True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Who runs in a step."""

    max_num_batched_tokens: int = _flag("most tokens computed in one step", 2048)
    max_num_seqs: int = _flag("most sequences running at once", 128)
    long_prefill_token_threshold: int = _flag(
        "most prompt tokens of one request in a step while others run; 0: no cap", 0
    )
    scheduling_policy: SchedulingPolicy = _flag("fcfs, or priority (lower value first, then arrival)", "fcfs")
    async_scheduling: bool = _flag(
        "prepare each step while a GPU computes the one before; without effect on a CPU", True
    )
    watermark: float = _flag("share of blocks kept free when a new request is admitted", 0.01)
    max_num_queued_reqs: int | None = _flag(
        "requests that may wait; a server refuses more with 503 (default 1024 there)"
    )
    max_num_queued_tokens: int | None = _flag(
        "prompt tokens that may wait; more are refused with 503", None, quantity=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionConfig:
    """Where and how the model runs."""

    device: str = _flag("auto, cpu, cuda or cuda:N", "auto")
    distributed_executor_backend: ExecutorBackend = _flag(
        "uni: in the engine's process; mp: a worker process per device", "uni"
    )
    num_threads: int | None = _flag("CPU threads for computing; default: the cores this process may use")
    attention_backend: AttentionBackend = _flag(
        "what computes attention on a GPU; auto: octavo's own kernels (triton); flash_attn and flashinfer are packages "
        "that have to be installed",
        "auto",
    )
    deterministic: bool = _flag(
        "give a request the same bytes alone, among others and after a preemption; a CPU always does, a GPU is slower "
        "for it",
        False,
    )
    enforce_eager: bool = _flag(
        "run every step of a GPU op by op, capture none as a graph: slower, but saves the graphs' memory", False
    )
    cudagraph_capture_sizes: tuple[int, ...] = _flag(
        "numbers of sequences whose decoding steps become graphs on a GPU, such as 1 2 4 8; default: 1, 2, 4 and "
        "multiples of 8, up to 256 and --max-num-seqs",
        (),
    )
    hang_timeout: float = _flag(
        "seconds without a finished step after which a server's engine process counts as hung and is replaced; "
        "large steps and slow machines get more; 0: never",
        10.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All an engine needs; what `LLM` takes as keyword arguments."""

    model: ModelConfig = ModelConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @classmethod
    def of(cls, **arguments: Any) -> EngineConfig:
        """Sort flat keyword arguments into the groups. Raises ConfigError for a name that is no field."""
        groups = {group.name: section for group, section in zip(fields(cls), SECTIONS, strict=True)}
        chosen: dict[str, dict[str, Any]] = {name: {} for name in groups}
        for key, value in arguments.items():
            home = next((name for name, section in groups.items() if key in _names(section)), None)
            if home is None:
                raise ConfigError(f"unknown argument {key!r}; see `octavo serve --help` for the list")
            chosen[home][key] = value
        return cls(**{name: section(**chosen[name]) for name, section in groups.items()})

    def __post_init__(self) -> None:
        for section in (self.model, self.cache, self.scheduler, self.execution):
            check(section)
        if self.cache.block_size & (self.cache.block_size - 1):
            raise ConfigError("block_size must be a power of two")
        swap, device = self.cache.swap_space, self.execution.device
        if swap is not None and 0 < swap < 2**20:  # elsewhere it is a number of GiB
            raise ConfigError(f"swap_space is in bytes, and {swap} hold nothing; for gibibytes write {swap}GiB")
        if not re.fullmatch(r"auto|cpu|cuda(:[1-9]?[0-9])?", device):
            raise ConfigError(
                f"--device {device!r} is not a device; use auto, cpu, cuda or cuda:N (AMD's are cuda, too)"
            )
        sizes, seats = self.execution.cudagraph_capture_sizes, self.scheduler.max_num_seqs
        if any(not 1 <= size <= seats for size in sizes):
            raise ConfigError(f"cudagraph_capture_sizes must be at least 1 and at most --max-num-seqs {seats}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP door."""

    host: str = _flag("address to listen on", "127.0.0.1")
    port: int = _flag("port to listen on", 8080)
    uds: str | None = _flag("listen on this UNIX socket instead of host and port")
    ssl_keyfile: str | None = _flag("private key of the TLS certificate")
    ssl_certfile: str | None = _flag("TLS certificate chain")
    api_key: tuple[str, ...] = _flag(
        "key that clients must send as `Authorization: Bearer KEY`; the machine's list of processes shows it, "
        "unlike the keys of --api-key-file",
        (),
        secret=True,
    )
    api_key_file: str | None = _flag(
        "file of hashed keys with roles and limits, made by `octavo keys new`; read again when it changes"
    )
    admin_port: int | None = _flag("port of what is for admins, /metrics among it, instead of --port")
    admin_host: str = _flag("address of the admin port", "127.0.0.1")
    request_timeout: float | None = _flag("most seconds a request may take; default: as many as it needs")
    queue_timeout: float = _flag("most seconds from a request's arrival to its first token", 600.0)
    shutdown_timeout: float = _flag("seconds that requests in flight have to finish after SIGTERM", 30.0)
    root_path: str = _flag("path prefix that a proxy in front strips", "")
    allowed_origins: tuple[str, ...] = _flag("web origin that may call the server from a browser", ())
    data_dir: str | None = _flag("folder for uploaded files and batches; without one the server has neither")
    batch_concurrency: int = _flag(
        "most requests of batches in flight; while others use the server, an eighth of them", 16
    )
    log_level: Literal["debug", "info", "warning", "error"] = _flag("how much the server logs", "info")
    log_format: LogFormat = _flag("text: lines for people; json: an object on each line", "text")
    otlp_traces_endpoint: str | None = _flag(
        "send a trace of each request there, by OTLP over HTTP, such as http://localhost:4318/v1/traces; "
        "needs `pip install octavo[otel]`"
    )

    def __post_init__(self) -> None:
        check(self)
        if bool(self.ssl_keyfile) != bool(self.ssl_certfile):
            raise ConfigError("TLS needs both --ssl-keyfile and --ssl-certfile")
        if not all(key.strip() for key in self.api_key):
            raise ConfigError("api_key must not be empty; leave --api-key out for a server without keys")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryConfig:
    """Many models in one server."""

    config: str | None = _flag(
        "TOML file that declares models and versions, instead of MODEL; read again when it changes"
    )
    model_repository: str | None = _flag("folder of models, each MODEL/VERSION/ or MODEL/; looked at again and again")
    memory_budget: int | None = _flag(
        "bytes that all loaded models may take, such as 16GiB; idle ones are unloaded for others", None, quantity=True
    )
    max_loaded_models: int | None = _flag("models loaded at a time; idle ones are unloaded for others")
    keep_alive: str = _flag("how long an unused model of --model-repository stays loaded: 5m, 0, or -1 for ever", "-1")
    preload: bool = _flag("load the models of --model-repository at once, rather than when they are asked for", True)

    def __post_init__(self) -> None:
        check(self)
        if self.config is not None and self.model_repository is not None:
            raise ConfigError("--config and --model-repository both say which models to serve; give one")


SECTIONS: tuple[type, ...] = (ModelConfig, CacheConfig, SchedulerConfig, ExecutionConfig)

_RANGES: Mapping[str, tuple[float, float]] = {
    "block_size": (1, 1024),
    "gpu_memory_utilization": (0.01, 1.0),
    "watermark": (0.0, 0.5),
    "max_num_batched_tokens": (1, 2**20),
    "max_num_seqs": (1, 2**16),
    "long_prefill_token_threshold": (0, 2**31),
    "max_num_queued_reqs": (1, 2**31),
    "max_num_queued_tokens": (1, 2**40),
    "kv_cache_memory": (1, 2**50),
    "swap_space": (0, 2**50),
    "num_gpu_blocks_override": (1, 2**31),
    "memory_budget": (1, 2**50),
    "max_loaded_models": (1, 4096),
    "max_model_len": (2, 2**31),  # a token of prompt and one of output
    "max_logprobs": (0, 2**31),
    "num_threads": (1, 4096),
    "hang_timeout": (0.0, 86400.0),
    "port": (0, 65535),
    "admin_port": (0, 65535),
    "request_timeout": (0.001, 86400.0),
    "queue_timeout": (0.001, 86400.0),
    "shutdown_timeout": (0.0, 86400.0),
    "batch_concurrency": (1, 2**16),
}


def _names(section: type) -> set[str]:
    return {item.name for item in fields(section)}


def check(section: Any) -> None:
    """Types, choices and ranges of a config's fields. Raises ConfigError naming the field."""
    hints = get_type_hints(type(section))
    for item in fields(section):
        value = getattr(section, item.name)
        hint = hints[item.name]
        if get_origin(hint) is tuple and isinstance(value, str | list):
            object.__setattr__(section, item.name, (value,) if isinstance(value, str) else tuple(value))
        elif item.metadata.get("quantity") and isinstance(value, str):
            try:
                value = parse_quantity(value)
            except ConfigError as error:
                raise ConfigError(f"{item.name}: {error.message}") from None
            object.__setattr__(section, item.name, value)
        elif get_origin(hint) is Literal and value not in get_args(hint):
            raise ConfigError(f"{item.name} must be one of {', '.join(get_args(hint))}, not {value!r}")
        try:
            msgspec.convert(getattr(section, item.name), hint)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{item.name}: {error}") from None
        if value is not None and item.name in _RANGES and value != item.metadata.get("also"):
            _check_range(item, value)


def _check_range(item: Field[Any], value: float) -> None:
    low, high = _RANGES[item.name]
    if low <= value <= high:
        return
    bound = f"at least {low}" if value < low else f"at most {high}"
    also = f", or {item.metadata['also']}" if "also" in item.metadata else ""
    raise ConfigError(f"{item.name} must be {bound}{also}, not {value}")


Section = TypeVar("Section")


def replace(section: Section, **changes: Any) -> Section:
    """A copy of a frozen config with some fields changed."""
    return dataclasses.replace(section, **changes)  # type: ignore[type-var]
