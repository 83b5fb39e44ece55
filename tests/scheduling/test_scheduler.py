"""What the scheduler promises, one thing at a time. Random schedules of all of them are in tests/simulation."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque

import pytest
from msgspec import structs
from simulation.oracle import VOCABULARY, Line
from simulation.worker import Worker

from octavo.config import SchedulerConfig
from octavo.errors import ContextTooLong, InvalidRequest, Overloaded
from octavo.plan import Capacity, RowResult, StepResult, fork_seed
from octavo.request import BACKGROUND, BeamSearchParams, Continuation, Request, SamplingParams
from octavo.scheduling.scheduler import Scheduler
from octavo.scheduling.sequence import Hypothesis

BLOCK = 4


def make_scheduler(num_blocks=64, max_model_len=64, prefix=True, block_size=BLOCK, kept=None, **config) -> Scheduler:
    return Scheduler(
        SchedulerConfig(**config),
        num_blocks=num_blocks,
        kept_blocks=kept,
        block_size=block_size,
        max_model_len=max_model_len,
        enable_prefix_caching=prefix,
        hash_seed=b"seed",
    )


def make_request(request_id, prompt, *, max_tokens=8, n=1, seed=7, beam=None, eos=(), **fields) -> Request:
    params = SamplingParams(n=n, max_tokens=max_tokens, **fields.pop("params", {}))
    return Request(
        request_id=request_id,
        prompt_token_ids=list(prompt),
        params=params,
        max_tokens=max_tokens,
        seed=seed,
        eos_token_ids=list(eos),
        beam=beam,
        **fields,
    )


def make_model(num_blocks=64) -> Worker:
    capacity = Capacity(num_blocks=num_blocks, block_size=BLOCK, max_model_len=64, vocab_size=VOCABULARY)
    return Worker(capacity, watch=lambda plan: None)


def expected(prompt, seed: int, max_tokens: int, ends: list[int]) -> list[int]:
    """What a request says alone."""
    output = Line(prompt, seed).output(max_tokens)
    places = [place for place, token in enumerate(output, 1) if token in ends]
    return output[: min(places, default=max_tokens)]


def step(scheduler: Scheduler, model: Worker):
    plan = scheduler.schedule()
    return plan, scheduler.update(model.run(plan))


def run_to_end(scheduler: Scheduler, model: Worker, limit=3000, ahead=0):
    """ahead: steps that are planned before the result of one is taken."""
    outputs, results = [], deque()
    for _ in range(limit):
        if not scheduler.has_work and not results:
            return outputs
        while len(results) <= ahead and (plan := scheduler.schedule()) is not None:
            assert plan.rows
            results.append(model.run(plan))
        assert results, "nothing to do although requests are unfinished"
        outputs += scheduler.update(results.popleft())
    raise AssertionError("requests never finish")


def texts(outputs) -> dict[tuple[str, int], list[int]]:
    tokens = defaultdict(list)
    for output in outputs:
        tokens[output.request_id, output.index] += output.token_ids
    return tokens


def test_the_plan_tells_workers_everything_once():
    """The fake model raises on a sequence added twice or never; a finished one is removed in the next plan."""
    scheduler, model = make_scheduler(), make_model()
    scheduler.add(make_request("a", range(10), max_tokens=3))
    run_to_end(scheduler, model)
    assert len(model.specs) == 1
    scheduler.add(make_request("b", range(10), max_tokens=1))
    plan, _ = step(scheduler, model)
    assert len(plan.removed) == len(plan.added) == len(model.specs) == 1


def test_a_cached_prefix_is_not_computed_again_and_salts_keep_tenants_apart():
    scheduler, model = make_scheduler(), make_model()
    computed = {}
    for name, salt in (("first", "x"), ("same", "x"), ("other", "y"), ("none", None)):
        scheduler.add(make_request(name, range(17), max_tokens=1, cache_salt=salt))
        plan, outputs = step(scheduler, model)
        computed[name] = plan.token_count
        assert outputs[0].cached_tokens == 17 - plan.token_count
    assert computed == {"first": 17, "same": 1, "other": 17, "none": 17}
    assert (scheduler.prefix_cache.queries, scheduler.prefix_cache.hits) == (68, 16)


def test_a_prompt_that_is_cached_whole_still_computes_its_last_token():
    scheduler, model = make_scheduler(), make_model()
    for name in "ab":
        scheduler.add(make_request(name, range(16), max_tokens=1))
        plan, _ = step(scheduler, model)
    assert [len(row.token_ids) for row in plan.rows] == [4]


def test_adapters_do_not_share_blocks():
    scheduler, model = make_scheduler(), make_model()
    for adapter in (None, "poet", "poet"):
        scheduler.add(make_request(str(adapter), range(16), max_tokens=1, adapter=adapter))
        plan, _ = step(scheduler, model)
        last = plan.token_count
    assert last == 4


def test_parallel_samples_share_the_prompt_and_copy_only_the_written_block():
    scheduler, model = make_scheduler(prefix=False), make_model()
    scheduler.add(make_request("a", range(10), n=3, max_tokens=2))
    step(scheduler, model)
    assert 64 - scheduler.pool.free == 3  # three sequences, one prompt
    plan, _ = step(scheduler, model)
    assert len(plan.copies) == 2  # the last owner writes in place


def test_least_recently_used_blocks_are_reused_first():
    scheduler, model = make_scheduler(num_blocks=9), make_model(9)

    def compute(name, prompt):
        scheduler.add(make_request(name, prompt, max_tokens=1))
        return step(scheduler, model)[0].token_count

    a, b, c = ([token] * 13 for token in (1, 2, 3))
    assert [compute("a", a), compute("b", b)] == [13, 13]
    assert compute("a again", a) == 1
    compute("c", c)  # needs blocks of the oldest: b
    assert compute("a still", a) == 1
    assert compute("b gone", b) > 1


def test_priority_runs_first_and_is_preempted_last():
    scheduler, model = make_scheduler(max_num_seqs=1, scheduling_policy="priority"), make_model()
    for name, level in (("late", 5), ("urgent", -1), ("normal", 0)):
        scheduler.add(make_request(name, [1, 2], max_tokens=1, priority=level))
    order = [output.request_id for output in run_to_end(scheduler, model)]
    assert order == ["urgent", "normal", "late"]


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_background_requests_go_behind_all_others(policy):
    scheduler, model = make_scheduler(max_num_seqs=1, scheduling_policy=policy), make_model()
    for name, level in (("batch", BACKGROUND), ("one", 2**31 - 1), ("two", 2**31 - 1)):
        scheduler.add(make_request(name, [1, 2], max_tokens=1, priority=level))
    order = [output.request_id for output in run_to_end(scheduler, model)]
    assert order == ["one", "two", "batch"]


@pytest.mark.parametrize("scarce", [{"max_num_seqs": 2}, {"num_blocks": 8, "prefix": False, "watermark": 0.0}])
def test_background_requests_give_their_place_to_one_that_finds_none(scarce):
    scheduler, model = make_scheduler(**scarce), make_model(scarce.get("num_blocks", 64))
    for name in ("batch 1", "batch 2"):
        scheduler.add(make_request(name, [1] * 8, max_tokens=20, seed=3, priority=BACKGROUND))
    outputs = [output for _ in range(8) for output in step(scheduler, model)[1]]
    assert len(scheduler.running) == 2
    scheduler.add(make_request("caller", [1] * 12, max_tokens=2))
    soon = [output for _ in range(4) for output in step(scheduler, model)[1]]
    assert [output.request_id for output in soon if output.finish_reason] == ["caller"]
    assert scheduler.preemptions
    outputs += soon + run_to_end(scheduler, model)
    for name in ("batch 1", "batch 2"):
        assert texts(outputs)[name, 0] == expected([1] * 8, 3, 20, [])


def test_preemption_takes_the_newest_and_resumes_it():
    scheduler, model = make_scheduler(num_blocks=8, prefix=False, watermark=0.0), make_model(8)
    for name in ("old", "new"):
        scheduler.add(make_request(name, [1] * 12, max_tokens=16, seed=ord(name[0])))
    outputs = run_to_end(scheduler, model)
    assert scheduler.preemptions
    finish = [output.request_id for output in outputs if output.finish_reason]
    assert finish == ["old", "new"]
    assert texts(outputs)["new", 0] == expected([1] * 12, ord("n"), 16, [])


def test_the_watermark_keeps_room_for_those_who_run():
    scheduler, model = make_scheduler(num_blocks=10, prefix=False, watermark=0.3), make_model(10)
    for name in "ab":
        scheduler.add(make_request(name, [1] * 15, max_tokens=4))
    plan, _ = step(scheduler, model)
    assert len(plan.rows) == 1  # 4 + 4 blocks fit in 10, but not above the 3 that are kept


def test_the_queue_is_bounded():
    scheduler = make_scheduler(max_num_queued_reqs=2, max_num_seqs=1)
    scheduler.add(make_request("running", [1]))
    step(scheduler, make_model())
    scheduler.add(make_request("a", [1]))
    scheduler.add(make_request("b", [1]))
    with pytest.raises(Overloaded):
        scheduler.add(make_request("c", [1]))
    scheduler.abort("a")
    scheduler.add(make_request("c", [1]))


def test_a_burst_within_one_step_takes_the_free_seats_and_the_queue():
    scheduler, model = make_scheduler(max_num_queued_reqs=1, max_num_seqs=3), make_model()
    scheduler.add(make_request("running", [1]))
    step(scheduler, model)
    for name in ("seat", "another seat", "queue"):
        scheduler.add(make_request(name, [1]))
    with pytest.raises(Overloaded):
        scheduler.add(make_request("one too many", [1]))
    scheduler.abort("running")
    scheduler.add(make_request("in its place", [1]))
    step(scheduler, model)
    with pytest.raises(Overloaded):
        scheduler.add(make_request("one too many", [1]))


def test_queued_tokens_are_bounded_but_one_request_always_fits():
    scheduler = make_scheduler(max_num_queued_tokens=20)
    scheduler.add(make_request("a", [1] * 30))
    with pytest.raises(Overloaded):
        scheduler.add(make_request("b", [1]))
    step(scheduler, make_model())
    scheduler.add(make_request("b", [1] * 30))


@pytest.mark.parametrize("length", [0, 64, 1000])
def test_what_can_never_run_is_refused(length):
    with pytest.raises(ContextTooLong):
        make_scheduler().add(make_request("a", [1] * length))


def test_the_context_ends_the_output():
    scheduler, model = make_scheduler(max_model_len=20), make_model()
    scheduler.add(make_request("a", [1] * 15, max_tokens=100))
    outputs = run_to_end(scheduler, model)
    assert len(outputs) == 5
    assert outputs[-1].finish_reason == "length"


def test_min_tokens_outlives_an_end_token():
    prompt = [1, 2, 3]
    first = expected(prompt, 7, 1, [])
    scheduler, model = make_scheduler(), make_model()
    scheduler.add(make_request("a", prompt, max_tokens=5, eos=first, params={"min_tokens": 1}))
    scheduler.add(make_request("b", prompt, max_tokens=5, eos=first))
    counts = Counter(output.request_id for output in run_to_end(scheduler, model))
    assert counts["b"] == 1
    assert counts["a"] > 1


def test_a_failed_row_ends_its_request_only():
    scheduler, model = make_scheduler(), make_model()
    for name in "ab":
        scheduler.add(make_request(name, [ord(name)] * 5, max_tokens=4))
    plan = scheduler.schedule()
    result = model.run(plan)
    broken = RowResult(plan.rows[0].sequence_id, [], error="NaN in the logits")
    outputs = scheduler.update(StepResult(plan.step, [broken, *result.rows[1:]]))
    assert [(output.request_id, output.error) for output in outputs] == [("a", "NaN in the logits"), ("b", None)]
    assert texts(outputs + run_to_end(scheduler, model))["b", 0] == expected([98] * 5, 7, 4, [])
    assert scheduler.pool.free == 64


def test_siblings_and_preempted_sequences_are_not_queued_requests():
    scheduler, model = make_scheduler(max_num_queued_reqs=2, max_num_seqs=1), make_model()
    scheduler.add(make_request("wide", [1, 2], n=9, max_tokens=3))
    step(scheduler, model)
    assert len(scheduler.waiting) > 2
    scheduler.add(make_request("b", [1]))
    scheduler.add(make_request("c", [1]))
    with pytest.raises(Overloaded):
        scheduler.add(make_request("d", [1]))


def test_without_a_bound_any_number_waits():
    scheduler = make_scheduler()
    for number in range(3000):
        scheduler.add(make_request(str(number), [1]))


@pytest.mark.parametrize("penalty", [-10.0, 10.0])
def test_the_longest_beam_has_a_finite_score(penalty):
    assert math.isfinite(Hypothesis([1] * 2**24, -1e6, None).score(penalty))
    with pytest.raises(InvalidRequest):
        BeamSearchParams(beam_width=2, max_tokens=2, length_penalty=penalty * 2)


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 7])
def test_another_scheduler_goes_on_where_the_first_one_ended(steps):
    """With a cold cache and other neighbours, every sequence ends as if nothing had happened; one had ended before."""
    request = make_request("r", range(9), n=3, max_tokens=8, params={"min_tokens": 2})
    ends = expected([*range(9)], fork_seed(7, 1), 8, [])
    request = structs.replace(request, eos_token_ids=[ends[3]])
    whole = texts(run_to_end(*start(request)))
    first, model = start(request)
    said = [output for _ in range(steps) for output in step(first, model)[1]]
    so_far, ended = texts(said), {output.index for output in said if output.finish_reason}
    known = [Continuation(index, tokens) for (_, index), tokens in so_far.items() if index not in ended]
    second, model = start(make_request("other", range(20)), structs.replace(request, resumes=known))
    rest = texts(run_to_end(second, model))
    assert {key: so_far.get(key, []) + rest.get(key, []) for key in whole} == whole
    assert len(set(map(len, whole.values()))) > 1, "all ended at once: nothing was left out"


def test_resumed_requests_were_accepted_before_and_count_once():
    scheduler, model = make_scheduler(max_num_queued_reqs=1, max_num_seqs=1), make_model()
    scheduler.add(make_request("running", [3]))
    step(scheduler, model)
    scheduler.add(make_request("new", [1, 2]))
    for name, known in (("unheard", []), ("heard", [Continuation(0, [5])])):
        scheduler.add(make_request(name, range(9), resumes=known))
    with pytest.raises(Overloaded):
        scheduler.add(make_request("newer", [1, 2]))
    scheduler.abort("new")
    scheduler.abort("unheard")
    scheduler.abort("heard", 0)  # its only sequence, before it started
    scheduler.add(make_request("newer", [1, 2]))
    run_to_end(scheduler, model)
    assert scheduler.prefix_cache.queries == 3


def start(*requests: Request) -> tuple[Scheduler, Worker]:
    scheduler = make_scheduler(max_num_batched_tokens=7)
    for request in requests:
        scheduler.add(request)
    return scheduler, make_model()
