"""`octavo plan`: what a model would take of this machine and give, before anything is loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from octavo.cli.display import amount, dim, print_json, size
from octavo.cli.flags import Parser, add_engine_flags, engine_config
from octavo.config import EngineConfig, replace
from octavo.errors import ConfigError

USAGE = "[MODEL] [flags]"
DESCRIPTION = """\
Say whether a model fits and how fast it may be, from its headers alone. Takes the flags of octavo serve. Of a model of
the hub that is not on this machine only its small files are fetched. The status is 1 if it does not fit.

  octavo plan Qwen/Qwen2.5-7B-Instruct --max-model-len 8k
  octavo plan ./model.gguf --json"""

_LENGTHS = (256, 512, 2048, 8192, 32768)  # tokens of prompt and answer together
_STREAMS = (1, 8, 32)
_SPEED_TOKENS = 512  # in the cache of each request while speeds are guessed
_PATIENCE_S = 0.5  # for each measurement


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help="the same as --model")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs; sizes are bytes")
    parser.add_argument("--no-speed", action="store_true", help="do not measure this machine, which takes some seconds")
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    from octavo.execution.footprint import footprint

    config = engine_config(options, options.model_argument)
    checkpoint = _checkpoint(config)
    taken = footprint(config, checkpoint)
    speed = _speed(config, taken) if taken.device.type == "cpu" and not options.no_speed else None
    facts = _facts(config, checkpoint.name, taken, speed)
    if options.json:
        print_json(facts)
    else:
        print(_page(facts))
    return 0 if facts["fits"] else 1


def _checkpoint(config: EngineConfig) -> Any:
    """The model as far as it is here; of another only what is small. Raises OctavoError."""
    from octavo.checkpoint import embedded, hub, resolve, store

    name, cache = config.model.model or embedded.DEFAULT.name, config.model.download_dir
    dummy = config.model.load_format == "dummy"
    if Path(name).expanduser().exists() or (dummy and name.lower() not in embedded.EMBEDDED):
        return resolve(replace(config.model, model=name))
    kept = store.find(name, Path(cache) if cache else None)
    if kept is not None and kept.complete:
        return kept.open()
    hub_id = hub.parse(name)
    if name.lower() in embedded.EMBEDDED or (hub_id is not None and hub_id.file):
        raise ConfigError(f"{name} is not on this machine, and its header is part of it; octavo pull {name} fetches it")
    return resolve(replace(config.model, model=name, load_format="dummy"))


def _speed(config: EngineConfig, taken: Any) -> dict[str, Any]:
    """Ceilings of this machine, and what follows for this model."""
    import torch

    from octavo.execution.worker import available_cores
    from octavo.kernels.ceilings import product_rate, read_bandwidth

    torch.set_num_threads(config.execution.num_threads or available_cores())
    reads, products = read_bandwidth(_PATIENCE_S), product_rate(taken.dtype, _PATIENCE_S)
    cache = _SPEED_TOKENS * taken.kv_token
    work = 2 * taken.parameters  # multiplications and additions for a token
    return {
        "read_bytes_per_second": reads,
        "operations_per_second": products,
        "decode_tokens_per_second": {
            count: count / max((taken.step_reads + count * cache) / reads, count * work / products)
            for count in _STREAMS
            if count <= config.scheduler.max_num_seqs
        },
        "prefill_tokens_per_second": products / work,
    }


def _facts(config: EngineConfig, name: str, taken: Any, speed: dict[str, Any] | None) -> dict[str, Any]:
    capacity = taken.capacity
    tokens = capacity.num_blocks * capacity.block_size if capacity else 0
    context = capacity.max_model_len if capacity else 0
    most = config.scheduler.max_num_seqs
    cache = tokens * taken.kv_token
    on_device = taken.weights + taken.workspace + cache + (taken.runtime if taken.device.type == "cpu" else 0)
    return {
        "model": name,
        "device": str(taken.device),
        "generates": taken.generates,
        "dtype": str(taken.dtype).removeprefix("torch."),
        "parameters": taken.parameters,
        "fits": capacity is not None and on_device <= taken.free,
        "obstacle": taken.obstacle,
        "memory": {
            "weights": taken.weights,
            "runtime": taken.runtime,
            "at_rest": taken.at_rest,
            "workspace": taken.workspace,
            "kv_cache": cache,
            "at_most": on_device,
            "free": taken.free,
            "total": taken.total,
        },
        "kv_bytes_per_token": taken.kv_token,
        "kv_tokens": tokens,
        "context": context,
        "requests_at_once": {
            str(length): min(tokens // length, most) for length in _LENGTHS if context and length <= context
        },
        "speed": speed,
    }


def _page(facts: dict[str, Any]) -> str:
    memory, speed = facts["memory"], facts["speed"]
    lines = [f"{facts['model']} in {facts['dtype']} on {facts['device']}: {amount(facts['parameters'])} parameters", ""]
    lines += _rows(
        {
            "weights": f"{size(memory['weights'])}",
            "libraries, tokenizer": f"{size(memory['runtime'])}, about",
            "KV cache": f"{size(memory['kv_cache'])} when full: {facts['kv_tokens']:,} tokens of "
            f"{size(facts['kv_bytes_per_token'])}",
            "largest step": f"{size(memory['workspace'])}, at most about",
            "all": f"{size(memory['at_rest'])} at rest, at most about {size(memory['at_most'])}; "
            f"free are {size(memory['free'])} of {size(memory['total'])}",
        }
    )
    if facts["obstacle"]:
        return "\n".join([*lines, "", f"It does not fit: {facts['obstacle']}"])
    verdict = "It fits." if facts["fits"] else "It does not fit when its KV cache fills up: lower --kv-cache-memory."
    at_once = [f"{count} of {int(length):,} tokens" for length, count in facts["requests_at_once"].items()]
    lines += ["", verdict, ""]
    lines += _rows({"context": f"{facts['context']:,} tokens", "requests at once": " or ".join(at_once) or "1"})
    if speed is not None:
        decode = [
            f"{rate:,.0f} tokens/s for {count} request{'s' if count > 1 else ''}"
            for count, rate in speed["decode_tokens_per_second"].items()
        ]
        prompts = f"at most about {speed['prefill_tokens_per_second']:,.0f} tokens/s"
        answers = {"answers": f"at most about {', '.join(decode)}"} if facts["generates"] else {}
        lines += ["", *_rows({**answers, "prompts" if facts["generates"] else "texts": prompts})]
        note = (
            f"Measured now: memory is read at {speed['read_bytes_per_second'] / 1e9:.1f} GB/s, matrices multiplied at "
            f"{speed['operations_per_second'] / 1e12:.2f} TFLOP/s. Small models reach a part of it."
        )
        lines += ["", dim(note, sys.stdout)]
    return "\n".join(lines)


def _rows(facts: dict[str, str]) -> list[str]:
    return [f"{name:<20}  {value}" for name, value in facts.items()]
