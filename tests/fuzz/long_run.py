"""Fuzz every target in turn for a while: `long_run.py --seconds 600 [--only gguf]`.

What fails is made small, kept in the corpus (where `make test` finds it from then on) and printed. Exits with 1 then.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
import traceback
from itertools import cycle
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(folder) for folder in (TESTS / "api", TESTS / "qa", TESTS, TESTS.parent)]

from fuzz_files import TARGETS as FILES  # noqa: E402  the path comes first
from fuzz_lines import TARGETS as LINES  # noqa: E402
from fuzz_wire import TARGETS as WIRE  # noqa: E402
from hypothesis import HealthCheck, given, seed, settings  # noqa: E402
from target import Target  # noqa: E402

ALL = [*FILES, *LINES, *WIRE]
SETTINGS = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False)


def batch(target: Target, number: int) -> bytes | None:
    """Try a few hundred inputs; the smallest found that fails, if any."""
    failed: bytes | None = None

    @seed(number)
    @settings(SETTINGS, max_examples=target.examples)
    @given(target.inputs)
    def attempt(data: bytes) -> None:
        nonlocal failed
        try:
            target.check(data)
        except BaseException:
            failed = data  # the last to fail is the smallest: hypothesis ends with it
            raise

    try:
        attempt()
    except Exception:  # whatever a target raises is a finding
        traceback.print_exc()
        assert failed is not None
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", choices=[target.name for target in ALL])
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # servers warn of what clients send
    targets = [target for target in ALL if options.only in (None, target.name)]
    deadline = time.monotonic() + options.seconds
    tried = dict.fromkeys((target.name for target in targets), 0)
    findings = []
    for target in cycle(targets):
        if time.monotonic() > deadline:
            break
        failed = batch(target, random.getrandbits(64))
        tried[target.name] += target.examples
        if failed is not None:
            findings.append(target.keep(failed))
            sys.stdout.write(f"{target.name}: kept {findings[-1]}\n")
    counts = ", ".join(f"{name} {count}" for name, count in tried.items())
    sys.stdout.write(f"inputs tried: {counts}; {len(findings)} failed\n")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
