"""`octavo bench throughput`: requests and tokens per second with all prompts there at once, in this process."""

from __future__ import annotations

import argparse
import time

from octavo.cli.flags import Parser, add_engine_flags, given
from octavo.cli.measure import add_output_flags, count_flag, model_info, ordinary_ids, random_prompts, write_json
from octavo.config import SECTIONS

USAGE = "[--model MODEL] [flags]"
DESCRIPTION = """\
Generate from many random prompts at once, in this process, and count tokens per second.

  octavo bench throughput --num-prompts 100 --input-len 128 --output-len 128"""


def add_arguments(parser: Parser) -> None:
    count_flag(parser, "--num-prompts", 100, "prompts")
    count_flag(parser, "--input-len", 128, "tokens of each prompt")
    count_flag(parser, "--output-len", 128, "tokens generated for each prompt")
    add_output_flags(parser)
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    from octavo.engine.llm import LLM
    from octavo.request import SamplingParams

    llm = LLM(**given(options, SECTIONS))
    ids = ordinary_ids(llm.get_tokenizer())
    prompts = random_prompts(options.num_prompts, options.input_len, ids, options.bench_seed)
    warmup = random_prompts(1, options.input_len, ids, options.bench_seed + 1)
    params = SamplingParams(temperature=1.0, ignore_eos=True, max_tokens=options.output_len, seed=options.bench_seed)
    llm.generate(warmup, SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
    began = time.perf_counter()
    outputs = llm.generate(prompts, params)
    elapsed = time.perf_counter() - began
    what = model_info(llm)
    llm.close()
    generated = sum(len(output.outputs[0].token_ids) for output in outputs)
    total = generated + sum(map(len, prompts))
    print(", ".join(f"{name}: {value}" for name, value in what.items()))
    print(
        f"Throughput: {len(prompts) / elapsed:.2f} requests/s, {total / elapsed:.2f} total tokens/s, "
        f"{generated / elapsed:.2f} output tokens/s"
    )
    print(f"Total num prompt tokens:  {total - generated}\nTotal num output tokens:  {generated}")
    write_json(
        options.output_json,
        {
            "elapsed_time": elapsed,
            "num_requests": len(prompts),
            "total_num_tokens": total,
            "requests_per_second": len(prompts) / elapsed,
            "tokens_per_second": total / elapsed,
            "output_tokens_per_second": generated / elapsed,
            **what,
        },
    )
    return 0
