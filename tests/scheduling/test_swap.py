"""Swap space: what a preempted sequence had computed comes back, if it went out, and is never computed twice."""

from __future__ import annotations

from simulation.worker import Worker
from test_scheduler import BLOCK, expected, make_request, run_to_end, step, texts

from octavo.config import SchedulerConfig
from octavo.plan import Capacity
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.swap import SwapSpace

PROMPT = [1] * 12


def scene(host_blocks: int, least: int = 0, prefix: bool = False, ahead: int = 0) -> tuple[Scheduler, Worker, list]:
    """Two requests, old and new, of which eight blocks cannot hold both to their ends; and the plans."""
    capacity = Capacity(num_blocks=8, block_size=BLOCK, max_model_len=64, vocab_size=52, host_blocks=host_blocks)
    plans: list = []
    scheduler = Scheduler(
        SchedulerConfig(watermark=0.0),
        num_blocks=8,
        block_size=BLOCK,
        max_model_len=64,
        host_blocks=host_blocks,
        enable_prefix_caching=prefix,
        hash_seed=b"seed",
    )
    scheduler.swap_space.least = least
    for name in ("old", "new"):
        scheduler.add(make_request(name, PROMPT, max_tokens=16, seed=ord(name[0])))
    return scheduler, Worker(capacity, plans.append), plans


def computed(plans: list) -> int:
    return sum(plan.token_count for plan in plans)


def check(scheduler: Scheduler, outputs: list) -> None:
    for name in ("old", "new"):
        assert texts(outputs)[name, 0] == expected(PROMPT, ord(name[0]), 16, [])
    assert scheduler.swap_space.free == scheduler.swap_space.count
    assert scheduler.pool.free == scheduler.pool.count


def test_what_was_swapped_out_is_not_computed_again():
    scheduler, model, plans = scene(host_blocks=8)
    check(scheduler, run_to_end(scheduler, model))
    assert scheduler.preemptions == 1
    assert computed(plans) == 2 * (12 + 15)
    (out,) = [plan.swaps_out for plan in plans if plan.swaps_out]
    (back,) = [plan.swaps_in for plan in plans if plan.swaps_in]
    assert [host for _, host in out] == [host for _, host in back]


def test_steps_ahead_swap_too():
    scheduler, model, plans = scene(host_blocks=8)
    check(scheduler, run_to_end(scheduler, model, ahead=1))
    assert computed(plans) == 2 * (12 + 15)


def test_without_room_it_is_computed_again():
    scheduler, model, plans = scene(host_blocks=3)
    check(scheduler, run_to_end(scheduler, model))
    assert scheduler.preemptions == 1
    assert computed(plans) > 2 * (12 + 15)
    assert not any(plan.swaps_out or plan.swaps_in for plan in plans)


def test_few_tokens_are_computed_again():
    scheduler, model, plans = scene(host_blocks=8, least=30)
    check(scheduler, run_to_end(scheduler, model))
    assert not any(plan.swaps_out for plan in plans)


def test_what_the_prefix_cache_still_has_does_not_come_in():
    scheduler, model, plans = scene(host_blocks=8, prefix=True)
    check(scheduler, run_to_end(scheduler, model))
    out = sum(len(plan.swaps_out) for plan in plans)
    assert 0 < sum(len(plan.swaps_in) for plan in plans) < out


def test_who_leaves_while_swapped_leaves_room():
    scheduler, model, _ = scene(host_blocks=8)
    while not scheduler.preemptions:
        step(scheduler, model)
    assert scheduler.swap_space.free < 8
    scheduler.abort("new")
    assert scheduler.swap_space.free == 8
    run_to_end(scheduler, model)


def test_a_host_block_that_is_read_in_a_plan_is_free_after_it():
    scheduler, model, plans = scene(host_blocks=8)
    while not any(plan.swaps_in for plan in plans):
        step(scheduler, model)
    assert scheduler.swap_space.free == 8
    assert not scheduler.running[-1].swapped


def test_low_host_blocks_are_used_first():
    scheduler, model, plans = scene(host_blocks=1000)
    run_to_end(scheduler, model)
    assert {host for plan in plans for _, host in plan.swaps_out} == set(range(4))
    assert SwapSpace(3).free == 3
