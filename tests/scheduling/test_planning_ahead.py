"""Steps planned before what the ones before them draw is known. Random schedules are in tests/simulation."""

from __future__ import annotations

import pytest
from test_scheduler import (
    expected,
    make_model,
    make_request,
    make_scheduler,
    run_to_end,
    texts,
)

from octavo.plan import DRAWN, StepResult
from octavo.request import BeamSearchParams, PoolingParams

PROMPT = [1, 2, 3, 4, 5]


def rows(plan):
    return [(row.start, row.token_ids, row.draws) for row in plan.rows]


def test_a_token_is_ordered_before_it_is_known():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", PROMPT))
    plans = [scheduler.schedule() for _ in range(3)]
    assert [rows(plan) for plan in plans] == [[(0, PROMPT, 1)], [(5, [DRAWN], 1)], [(6, [DRAWN], 1)]]
    assert [row.block_ids for plan in plans for row in plan.rows] == [[0, 1], [], []]


@pytest.mark.parametrize(("length", "max_tokens", "most"), [(5, 3, 3), (5, 1, 1), (60, 100, 4)])
def test_nothing_is_computed_beyond_a_certain_end(length, max_tokens, most):
    """Of its length, or of the context of 64."""
    scheduler = make_scheduler()
    scheduler.add(make_request("a", [1] * length, max_tokens=max_tokens))
    plans = [scheduler.schedule() for _ in range(most + 2)]
    assert [plan is None for plan in plans] == [False] * most + [True] * 2


@pytest.mark.parametrize(
    "wish",
    [
        {"n": 2},
        {"beam": BeamSearchParams(beam_width=2, max_tokens=8)},
        {"params": {"prompt_logprobs": 0}},
        {"bad_words": [[7], [8, 9]]},
        {"grammar": "a grammar"},
        {"pooling": PoolingParams()},
    ],
    ids=lambda wish: next(iter(wish)),
)
def test_what_depends_on_the_draw_waits_for_it(wish):
    scheduler = make_scheduler(max_num_batched_tokens=3)
    scheduler.add(make_request("a", PROMPT, **wish))
    assert rows(scheduler.schedule())[0][:2] == (0, [1, 2, 3])
    assert rows(scheduler.schedule())[0][:2] == (3, [4, 5])  # all its tokens are known
    assert scheduler.schedule() is None


@pytest.mark.parametrize("wish", [{"n": 2}, {"params": {"prompt_logprobs": 0}}, {"bad_words": [[7], [8]]}])
def test_what_went_on_as_single_lines_is_planned_ahead(wish):
    scheduler, model = make_scheduler(), make_model()
    scheduler.add(make_request("a", PROMPT, **wish))
    scheduler.update(model.run(scheduler.schedule()))
    for _ in range(2):
        plan = scheduler.schedule()
    assert [row.token_ids for row in plan.rows] == [[DRAWN]] * wish.get("n", 1)


def test_an_end_that_is_noticed_late_leaks_no_token_and_its_blocks_serve_others():
    first = expected(PROMPT, 7, 1, [])
    scheduler, model = make_scheduler(num_blocks=2, prefix=False, watermark=0.0), make_model(2)
    scheduler.add(make_request("a", PROMPT, eos=first))
    late = [model.run(scheduler.schedule()) for _ in range(2)]
    outputs = scheduler.update(late[0])
    assert [output.finish_reason for output in outputs] == ["stop"]
    assert scheduler.pool.free == 2
    scheduler.add(make_request("b", PROMPT, max_tokens=3))
    plan = scheduler.schedule()
    assert (plan.removed, sorted(plan.rows[0].block_ids)) == ([0], [0, 1])
    result = model.run(plan)
    assert scheduler.update(late[1]) == []
    outputs += scheduler.update(result) + run_to_end(scheduler, model, ahead=1)
    assert texts(outputs) == {("a", 0): first, ("b", 0): expected(PROMPT, 7, 3, [])}


def test_a_preempted_sequence_comes_back_when_its_token_has_arrived():
    scheduler, model = make_scheduler(), make_model()
    for name in "ab":
        scheduler.add(make_request(name, PROMPT, max_tokens=4))
    late = model.run(scheduler.schedule())
    victim = scheduler.running[0]
    scheduler._preempt(victim)
    result = model.run(plan := scheduler.schedule())
    assert [row.sequence_id for row in plan.rows] == [1], "b goes on, a's token is on its way"
    outputs = scheduler.update(late)
    assert victim.tokens[5:] == expected(PROMPT, 7, 1, [])
    again = scheduler.schedule()
    assert [spec.token_ids for spec in again.added] == [victim.tokens]
    late = model.run(again)
    outputs += scheduler.update(result) + scheduler.update(late) + run_to_end(scheduler, model, ahead=2)
    assert texts(outputs) == {(name, 0): expected(PROMPT, 7, 4, []) for name in "ab"}


def test_nobody_overtakes_one_whose_token_is_on_its_way():
    scheduler, model = make_scheduler(), make_model()
    scheduler.add(make_request("a", PROMPT))
    late = model.run(scheduler.schedule())
    scheduler._preempt(scheduler.running[0])
    scheduler.add(make_request("b", PROMPT))
    assert scheduler.schedule() is None
    scheduler.update(late)
    assert [row.sequence_id for row in scheduler.schedule().rows] == [0, 1]


def test_rows_of_an_earlier_incarnation_make_nothing_findable():
    scheduler, model = make_scheduler(max_num_batched_tokens=8), make_model()
    scheduler.add(make_request("a", range(20)))
    late = model.run(scheduler.schedule())
    scheduler._preempt(scheduler.running[0])
    again = model.run(scheduler.schedule())
    scheduler.update(late)
    assert not scheduler.prefix_cache._block_of
    scheduler.update(again)
    assert len(scheduler.prefix_cache._block_of) == 2


def test_a_request_hears_nothing_of_one_of_its_name_that_was_aborted():
    scheduler, model = make_scheduler(), make_model()
    scheduler.add(make_request("a", [9, 9], seed=1))
    late = [model.run(scheduler.schedule()) for _ in range(2)]
    scheduler.abort("a")
    scheduler.add(make_request("a", PROMPT, max_tokens=2))
    assert not scheduler.under_way[0].started[0].live
    outputs = [output for result in late for output in scheduler.update(result)]
    assert outputs == []
    assert texts(run_to_end(scheduler, model, ahead=1)) == {("a", 0): expected(PROMPT, 7, 2, [])}


def test_results_are_taken_in_the_order_of_their_steps():
    scheduler = make_scheduler()
    scheduler.add(make_request("a", PROMPT))
    plans = [scheduler.schedule() for _ in range(2)]
    with pytest.raises(AssertionError):
        scheduler.update(StepResult(plans[1].step, []))
