"""`python -m simulation`: seeds for a while in parallel, then every seeded bug; or one seed, shrunk if it fails."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from typing import Any

from simulation.mutations import MUTATIONS, Mutation, install

_CHUNK = 40  # seeds between two looks at the clock
_TELL_SECONDS = 60.0
_MUTANT_SECONDS = 240.0
_WIDTH = 100  # characters of a violation that are shown of a seeded bug


def main() -> int:
    options = _options()
    logging.disable(logging.CRITICAL)  # what the simulated service logs is not ours to say
    if options.mutation is not None:
        return _run_mutant(next(each for each in MUTATIONS if each.name == options.mutation))
    if options.seed is not None:
        return _run_seed(options.seed)
    failed = _run_seeds(options.seconds, options.jobs, options.first)
    if options.mutations:
        failed = _run_mutants(options.jobs) or failed
    return int(failed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long seeds are run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--first", type=int, help="the first seed; default: another one each time")
    parser.add_argument("--seed", type=int, help="run this one; if it fails, find the least that fails")
    parser.add_argument("--mutations", action=argparse.BooleanOptionalAction, default=True, help="run the seeded bugs")
    parser.add_argument("--mutation", help="run with this bug until it is noticed")
    return parser.parse_args()


# --- seeds ------------------------------------------------------------------------------------------------------------


def _run_seeds(seconds: float, jobs: int, first: int | None) -> bool:
    """Whether one failed."""
    seed = int.from_bytes(os.urandom(6), "little") if first is None else first
    began = told = time.monotonic()
    steps = seeds = 0
    failures: list[tuple[int, str]] = []
    say(f"seeds from {seed} on, {jobs} at once")
    with ProcessPoolExecutor(jobs, initializer=logging.disable) as pool:
        running: set[Future[Any]] = set()
        while running or (time.monotonic() - began < seconds and not failures):
            while len(running) < jobs + 1 and time.monotonic() - began < seconds and not failures:
                running.add(pool.submit(run_chunk, seed, _CHUNK))
                seed += _CHUNK
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                made, failed = future.result()
                steps, seeds = steps + made, seeds + _CHUNK
                failures += failed
            if time.monotonic() > told + _TELL_SECONDS:
                told = time.monotonic()
                say(f"  {steps:,} steps of {seeds:,} seeds in {told - began:.0f} s")
    took = time.monotonic() - began
    say(f"{steps:,} steps of {seeds:,} seeds in {took:.0f} s: {steps / took:,.0f} steps per second")
    say(f"{len(failures)} violations")
    for failed_seed, what in failures:
        say(f"seed {failed_seed}: {what}\n  make simulate ARGS='--seed {failed_seed}'")
    return bool(failures)


def run_chunk(first: int, count: int) -> tuple[int, list[tuple[int, str]]]:
    """Steps made, and the seeds that failed with what they broke."""
    from simulation.books import Violation
    from simulation.run import run
    from simulation.scenario import from_seed

    steps = 0
    failures: list[tuple[int, str]] = []
    for seed in range(first, first + count):
        try:
            steps += run(from_seed(seed))
        except Violation as violation:
            failures.append((seed, f"{violation} (step {violation.step})"))
    return steps, failures


def _run_seed(seed: int) -> int:
    import msgspec

    from simulation.scenario import from_seed
    from simulation.shrink import broken, shrink

    scenario = from_seed(seed)
    if broken(scenario) is None:
        say("nothing is violated")
        return 0
    least = shrink(scenario)
    say(str(broken(least)))
    say(msgspec.json.format(msgspec.json.encode(least)).decode())
    return 1


# --- seeded bugs ------------------------------------------------------------------------------------------------------


def _run_mutants(jobs: int) -> bool:
    """Whether one went unnoticed."""
    _, failures = run_chunk(0, _CHUNK)
    if failures:
        say("the same seeds fail without a bug: nothing is proved")
        return True
    began = time.monotonic()
    caught = steps = 0
    with ThreadPoolExecutor(jobs) as pool:
        for mutation, report in zip(MUTATIONS, pool.map(run_mutant, MUTATIONS), strict=True):
            steps += report["steps"]
            caught += report["caught"]
            say(f"  {mutation.name:45} {'caught' if report['caught'] else 'MISSED'}: {report['what']}")
    took = time.monotonic() - began
    say(f"caught {caught}/{len(MUTATIONS)}; {steps:,} steps, {steps / took:,.0f} per second")
    return caught < len(MUTATIONS)


def run_mutant(mutation: Mutation) -> dict[str, Any]:
    """In a process of its own: {"caught", "steps", "what"}."""
    command = [sys.executable, "-m", "simulation", "--mutation", mutation.name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_MUTANT_SECONDS * 3, check=False, env=environment
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        return {"caught": False, "steps": 0, "what": f"could not be run: {' '.join(last)}"}
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _run_mutant(mutation: Mutation) -> int:
    """Seeds until one fails for a reason that is the simulation's to see. A bug that is none is an error."""
    install(mutation)
    from simulation.books import Violation
    from simulation.run import run
    from simulation.scenario import from_seed

    began = time.monotonic()
    steps = seed = 0
    caught, what = False, "nothing was violated"
    while not caught and time.monotonic() - began < _MUTANT_SECONDS:
        try:
            steps += run(from_seed(seed, share_of_whole=mutation.share_of_whole, tensors=mutation.tensors))
        except Violation as violation:
            if isinstance(violation.__cause__, NameError | ImportError | SyntaxError | TypeError):
                raise
            steps += violation.step
            caught, what = True, f"{str(violation)[:_WIDTH]} (seed {seed}, step {steps})"
        seed += 1
    say(json.dumps({"caught": caught, "steps": steps, "what": what}))
    return 0


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
