"""1,000 random JSON schemas, each followed by a real model at temperature 1: every answer that ends must be valid.

    make check-grammars ARGS="--count 100 --seed 7"

Schemas that llguidance refuses are counted. Ends with 1 if an answer is invalid.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from datetime import date
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from octavo import LLM, SamplingParams
from octavo.errors import InvalidRequest
from octavo.request import RequestOutput, StructuredOutputs

from .random_schemas import random_schema


def _formats() -> FormatChecker:
    """RFC 3339's dates and times: Python's know no year 0, and the library's times no zone."""
    checker = FormatChecker(formats=("email", "ipv4", "ipv6", "uuid"))
    time_of_day = r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)([.][0-9]+)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"

    def is_date(text: object) -> bool:
        year, month, day = (int(part) for part in str(text).split("-"))
        date(2000 + year % 400, month, day)  # the calendar repeats
        return re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", str(text)) is not None

    def is_time(text: object) -> bool:
        return re.fullmatch(time_of_day, str(text), re.IGNORECASE) is not None

    checker.checks("date", raises=ValueError)(is_date)
    checker.checks("time")(is_time)
    checker.checks("date-time", raises=ValueError)(
        lambda text: is_date(str(text)[:10]) and str(text)[10] in "Tt" and is_time(str(text)[11:])
    )
    return checker


FORMATS = _formats()


def complaint(schema: dict[str, Any], text: str) -> str | None:
    """What is wrong with an answer, if anything."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    error = next(Draft202012Validator(schema, format_checker=FORMATS).iter_errors(value), None)
    return None if error is None else error.message


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path or name; default: the embedded one")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first schema")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--at-once", type=int, default=64)
    options = parser.parse_args()
    llm = LLM(options.model, max_model_len=1024, max_num_seqs=options.at_once)
    engine = llm.llm_engine

    prompt = "Here is an example of our data, as JSON:\n"
    schemas = {str(seed): random_schema(seed) for seed in range(options.seed, options.seed + options.count)}
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    began = time.monotonic()
    waiting = list(schemas)
    while waiting or engine.has_unfinished_requests():
        while waiting and engine.get_num_unfinished_requests() < options.at_once:
            name = waiting.pop(0)
            wishes = StructuredOutputs(json=schemas[name])
            params = SamplingParams(max_tokens=options.max_tokens, seed=int(name), structured_outputs=wishes)
            try:
                engine.add_request(name, prompt, params, output_kind="final")
            except InvalidRequest as error:
                refused[error.message] += 1
        for output in engine.step():
            _judge(output, schemas[output.request_id], counts)
    seconds = time.monotonic() - began
    for message, times in refused.most_common():
        _say(f"refused {times} times: {message[:160]}")
    asked = options.count - refused.total()
    _say(
        f"{options.count} schemas, {refused.total()} refused; of {asked} answers {counts['stop']} finished and "
        f"{counts['valid']} of these are valid, {counts['length']} were cut off at {options.max_tokens} tokens, "
        f"{counts['error']} failed; {counts['tokens']} tokens in {seconds:.0f} s"
    )
    return int(counts["stop"] != counts["valid"] or counts["error"] > 0)


def _judge(output: RequestOutput, schema: dict[str, Any], counts: Counter[str]) -> None:
    [answer] = output.outputs
    counts[answer.finish_reason or ""] += 1
    counts["tokens"] += len(answer.token_ids)
    if answer.finish_reason == "error":
        _say(f"FAILED {output.request_id}: {answer.stop_reason}")
    if answer.finish_reason == "stop":
        wrong = complaint(schema, answer.text)
        counts["valid"] += wrong is None
        if wrong is not None:
            _say(f"INVALID {output.request_id}: {wrong}\n  {json.dumps(schema)}\n  {answer.text!r}")


if __name__ == "__main__":
    sys.exit(main())
