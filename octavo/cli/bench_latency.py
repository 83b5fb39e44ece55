"""`octavo bench latency`: the time one batch takes from prompts to last token, in this process."""

from __future__ import annotations

import argparse
import time

from octavo.cli.flags import Parser, add_engine_flags, given
from octavo.cli.measure import (
    PERCENTILES,
    add_output_flags,
    count_flag,
    mean,
    model_info,
    ordinary_ids,
    percentile,
    random_prompts,
    write_json,
)
from octavo.config import SECTIONS

USAGE = "[--model MODEL] [flags]"
DESCRIPTION = """\
Time a batch of random prompts, again and again, in this process. The prefix cache is off unless asked for.

  octavo bench latency --batch-size 1 --input-len 32 --output-len 128"""


def add_arguments(parser: Parser) -> None:
    count_flag(parser, "--input-len", 32, "tokens of each prompt")
    count_flag(parser, "--output-len", 128, "tokens generated for each prompt")
    count_flag(parser, "--batch-size", 8, "prompts in the batch")
    count_flag(parser, "--num-iters", 30, "batches timed")
    count_flag(parser, "--num-iters-warmup", 3, "batches run before")
    add_output_flags(parser)
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    from octavo.engine.llm import LLM
    from octavo.request import SamplingParams

    llm = LLM(**{"enable_prefix_caching": False, **given(options, SECTIONS)})
    ids = ordinary_ids(llm.get_tokenizer())
    prompts = random_prompts(options.batch_size, options.input_len, ids, options.bench_seed)
    params = SamplingParams(temperature=1.0, ignore_eos=True, max_tokens=options.output_len, seed=options.bench_seed)
    latencies = []
    for turn in range(options.num_iters_warmup + options.num_iters):
        began = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        if turn >= options.num_iters_warmup:
            latencies.append(time.perf_counter() - began)
    what = model_info(llm)
    llm.close()
    percentiles = {str(percent): percentile(latencies, percent) for percent in PERCENTILES}
    rate = options.batch_size * options.output_len / max(mean(latencies), 1e-9)
    print(", ".join(f"{name}: {value}" for name, value in what.items()))
    print(f"Avg latency: {mean(latencies):.6f} seconds ({rate:.1f} output tokens/s)")
    for percent, seconds in percentiles.items():
        print(f"{percent}% percentile latency: {seconds:.6f} seconds")
    write_json(
        options.output_json,
        {
            "avg_latency": mean(latencies),
            "latencies": latencies,
            "percentiles": percentiles,
            "output_tokens_per_second": rate,
            **what,
        },
    )
    return 0
