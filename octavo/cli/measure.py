"""What the benchmarks share: random prompts, percentiles, and where results go."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octavo.cli.flags import Parser, number

PERCENTILES = (10, 25, 50, 75, 90, 99)


def add_output_flags(parser: Parser) -> None:
    parser.add_argument("--output-json", metavar="FILE", help="write the results there too")
    parser.add_argument(
        "--bench-seed", type=number(int), default=0, metavar="N", help="seed of the random prompts (default: 0)"
    )


def count_flag(group: Any, name: str, default: int, help_text: str) -> None:
    group.add_argument(name, type=number(int), default=default, metavar="N", help=f"{help_text} (default: {default})")


def random_prompts(count: int, length: int, ids: Sequence[int], seed: int) -> list[list[int]]:
    """The same for the same seed; no two begin alike, so a prefix cache finds nothing."""
    draw = random.Random(seed)  # noqa: S311 (not for secrets)
    return [draw.choices(ids, k=length) for _ in range(count)]


def ordinary_ids(tokenizer: Any) -> list[int]:
    """All token ids but the special ones."""
    return [token_id for token_id in range(tokenizer.vocab_size) if token_id not in tokenizer.special_ids]


def model_info(llm: Any) -> dict[str, str]:
    """What an `LLM` computes with."""
    from octavo.execution.device import choose_device
    from octavo.execution.worker import choose_dtype

    engine = llm.llm_engine
    device = choose_device(engine.config.execution.device)
    dtype = choose_dtype(engine.config.model.dtype, engine.checkpoint, device)
    return {
        "model": engine.checkpoint.name,
        "format": engine.checkpoint.format,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between neighbours; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def write_json(path: str | None, results: dict[str, Any]) -> None:
    if path is not None:
        Path(path).write_text(json.dumps(results, indent=2) + "\n")
