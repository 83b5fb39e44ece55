"""The quick part of the simulation: some seeds, what has failed before, what Hypothesis finds, a few seeded bugs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulation.__main__ import run_chunk, run_mutant
from simulation.mutations import MUTATIONS, Mutation
from simulation.run import run
from simulation.scenario import (
    Ask,
    Break,
    Crash,
    Hang,
    Lag,
    Leave,
    Op,
    Scenario,
    Settle,
    Setup,
    Step,
    Unloadable,
    from_seed,
)

REGRESSIONS = msgspec.json.decode(Path(__file__).with_name("regressions.json").read_bytes(), type=list[Scenario])
QUICK = {
    "skip a decref",
    "hash without salt",
    "re-emit after preempt",
    "the worker keeps a stale slot",
    "a swapped block has two owners",
}

few = st.integers(0, 3)
asks = st.builds(
    Ask,
    prompt=st.lists(few, min_size=1, max_size=20),
    max_tokens=st.integers(1, 12),
    n=st.sampled_from([1, 1, 2, 3]),
    seed=few,
    eos=st.lists(st.integers(0, 52), max_size=3),
    stop=st.lists(st.sampled_from(["a", "bc", "é"]), max_size=2),
    prompt_logprobs=st.booleans(),
    salt=st.sampled_from([None, "a", "b"]),
    priority=few,
)
beams = st.builds(
    Ask, prompt=st.lists(few, min_size=1, max_size=9), beam=st.integers(1, 3), max_tokens=st.integers(1, 4)
)
steps = st.builds(Step, st.integers(1, 5))
faults = st.one_of(
    st.builds(Leave, few),
    st.builds(Break, few),
    st.builds(Lag, few, few),
    st.builds(Crash, st.booleans(), few),
    st.just(Hang()),
    st.builds(Unloadable, st.integers(1, 3)),
    st.just(Settle()),
)
setups = st.builds(
    Setup,
    num_blocks=st.integers(6, 40),
    block_size=st.sampled_from([1, 2, 4]),
    max_model_len=st.just(32),
    kept_blocks=st.sampled_from([None, 1, 5]),
    prefix_caching=st.booleans(),
    max_num_batched_tokens=st.integers(1, 20),
    max_num_seqs=st.integers(1, 5),
    long_prefill_token_threshold=few,
    policy=st.sampled_from(["fcfs", "priority"]),
    max_num_queued_reqs=st.sampled_from([None, 2]),
    steps_ahead=st.sampled_from([0, 1, 2]),
    host_blocks=st.sampled_from([0, 3, 100]),
    least_swapped=st.sampled_from([0, 4]),
)


def test_some_hundred_seeds() -> None:
    steps, failures = run_chunk(0, 100)
    assert not failures
    assert steps > 10_000


def test_seeds_through_real_block_tables() -> None:
    assert sum(run(from_seed(seed, tensors=True)) for seed in range(20)) > 1000


@pytest.mark.parametrize("scenario", REGRESSIONS, ids=lambda scenario: scenario.note)
def test_what_has_failed_before(scenario: Scenario) -> None:
    run(scenario)


@given(setups, st.lists(st.one_of(asks, steps, beams, faults), max_size=25), st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_operations(setup: Setup, ops: list[Op], whole: bool) -> None:
    """Hypothesis shrinks what fails; `python -m simulation --seed N` does the same for a seed."""
    run(Scenario(setup, ops, whole))


def test_a_seed_runs_the_same_way_every_time() -> None:
    assert from_seed(5) == from_seed(5)
    assert run(from_seed(5)) == run(from_seed(5)) > 0


@pytest.mark.parametrize("mutation", [each for each in MUTATIONS if each.name in QUICK], ids=lambda each: each.name)
def test_seeded_bugs_are_noticed(mutation: Mutation) -> None:
    report = run_mutant(mutation)
    assert report["caught"], report["what"]


def test_every_seeded_bug_still_has_its_place() -> None:
    root = Path(__file__).parents[2]
    for mutation in MUTATIONS:
        mutation.patch((root / f"{mutation.module.replace('.', '/')}.py").read_text())
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 30
    with pytest.raises(LookupError, match="occurs 0 times"):
        Mutation("a bug of yesterday", "octavo.plan", "no such text", "").patch("source")
