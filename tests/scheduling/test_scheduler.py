"""The scheduler under random schedules: every step keeps the books, every output equals the request run alone."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict

import pytest
from fake_model import FakeModel, candidates, expected
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from octavo.config import SchedulerConfig
from octavo.errors import ContextTooLong, InvalidRequest, Overloaded
from octavo.plan import RowResult, StepResult, fork_seed
from octavo.request import BeamSearchParams, Continuation, Logprobs, Request, SamplingParams
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


def check_books(scheduler: Scheduler) -> None:
    """Blocks: owned ones have as many references as owners, the others are free; every sequence in one place."""
    owners = Counter()
    for sequence in scheduler.waiting:
        assert not sequence.blocks
        assert sequence.computed == 0
    for sequence in scheduler.running:
        assert len(sequence.blocks) == -(-sequence.computed // BLOCK)
        owners.update(sequence.blocks)
    references = dict(enumerate(scheduler.pool.references))
    assert {block: count for block, count in references.items() if count} == owners
    assert scheduler.pool.free == scheduler.pool.count - len(owners)
    live = [sequence for group in scheduler._groups.values() for sequence in group.live]
    assert sorted(map(id, live)) == sorted(map(id, scheduler.waiting + scheduler.running))
    assert len(scheduler.running) <= scheduler.config.max_num_seqs


def step(scheduler: Scheduler, model: FakeModel):
    plan = scheduler.schedule()
    assert plan.token_count <= scheduler.config.max_num_batched_tokens
    assert len({row.sequence_id for row in plan.rows}) == len(plan.rows)
    assert all(row.token_ids for row in plan.rows)
    writable = Counter()
    for sequence, start, end in scheduler._in_flight.values():
        for block in sequence.blocks[start // BLOCK : -(-end // BLOCK)]:
            writable[block] += 1
            assert scheduler.pool.references[block] == 1, "a shared block would be written"
    outputs = scheduler.update(model.run(plan))
    check_books(scheduler)
    return plan, outputs


def run_to_end(scheduler: Scheduler, model: FakeModel, limit=3000):
    outputs = []
    for _ in range(limit):
        if not scheduler.has_work:
            return outputs
        plan, new = step(scheduler, model)
        assert plan.rows, "nothing to do although requests are unfinished"
        outputs += new
    raise AssertionError("requests never finish")


def texts(outputs) -> dict[tuple[str, int], list[int]]:
    tokens = defaultdict(list)
    for output in outputs:
        tokens[output.request_id, output.index] += output.token_ids
    return tokens


def beam_oracle(prompt: list[int], width: int, max_tokens: int, eos: list[int]) -> list[list[int]]:
    """Beam search without blocks, batches or steps."""
    beams, done = [([], 0.0)], []
    for _ in range(max_tokens):
        grown = []
        for output, total in beams:
            for token, logprob in candidates(prompt + output, 2 * width):
                (done if token in eos else grown).append(([*output, token], total + logprob))
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    return [output for output, total in sorted(done + beams, key=lambda beam: -beam[1] / len(beam[0]))[:width]]


prompts = st.one_of(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(1, 30).map(lambda length: [5] * length),  # shared prefixes
)
requests = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": prompts,
            "max_tokens": st.integers(1, 20),
            "n": st.sampled_from([1, 1, 1, 2, 3]),
            "beam": st.sampled_from([0, 0, 0, 1, 2, 3]),
            "seed": st.integers(0, 2),
            "eos": st.lists(st.integers(0, 999), max_size=300),
            "salt": st.sampled_from([None, None, "a", "b"]),
            "priority": st.integers(0, 2),
            "at": st.integers(0, 30),
            "abort_at": st.one_of(st.none(), st.none(), st.integers(0, 40)),
        }
    ),
    min_size=1,
    max_size=8,
)


@given(
    requests=requests,
    num_blocks=st.integers(13, 60),
    budget=st.integers(1, 40),
    max_num_seqs=st.integers(1, 6),
    policy=st.sampled_from(["fcfs", "priority"]),
    prefix=st.booleans(),
    kept=st.sampled_from([None, 1, 8, 20]),
    threshold=st.sampled_from([0, 3]),
)
@settings(max_examples=300, deadline=None)
def test_any_schedule_gives_the_tokens_of_the_request_alone(
    requests, num_blocks, budget, max_num_seqs, policy, prefix, kept, threshold
):
    scheduler = make_scheduler(
        num_blocks,
        prefix=prefix,
        kept=kept,
        max_num_batched_tokens=budget,
        max_num_seqs=max_num_seqs,
        scheduling_policy=policy,
        long_prefill_token_threshold=threshold,
    )
    model = FakeModel(num_blocks, BLOCK)
    outputs, aborted = [], set()
    for now in range(45):
        for number, ask in enumerate(requests):
            if ask["at"] == now:
                beam = BeamSearchParams(beam_width=ask["beam"], max_tokens=ask["max_tokens"]) if ask["beam"] else None
                scheduler.add(
                    make_request(
                        str(number),
                        ask["prompt"],
                        max_tokens=ask["max_tokens"],
                        n=1 if beam else ask["n"],
                        seed=ask["seed"],
                        eos=ask["eos"],
                        beam=beam,
                        cache_salt=ask["salt"],
                        priority=ask["priority"],
                    )
                )
            if ask["abort_at"] == now:
                scheduler.abort(str(number))
                aborted.add(str(number))
        check_books(scheduler)
        outputs += step(scheduler, model)[1]
    outputs += run_to_end(scheduler, model)

    assert scheduler.pool.free == num_blocks
    assert not scheduler.pool._free.keys() ^ set(range(scheduler.pool._used))
    assert scheduler._queued_tokens == 0
    scheduler.schedule()  # tells the workers what is left to forget
    got = texts(outputs)
    for number, ask in enumerate(requests):
        for index in range(ask["beam"] or ask["n"]):
            if ask["beam"]:
                ranked = beam_oracle(ask["prompt"], ask["beam"], ask["max_tokens"], ask["eos"])
                alone = ranked[index]
            else:
                alone = expected(ask["prompt"], fork_seed(ask["seed"], index), ask["max_tokens"], ask["eos"])
            mine = got.get((str(number), index), [])
            if str(number) in aborted:
                assert mine == alone[: len(mine)]
            else:
                assert mine == alone
    finished = Counter(output.request_id for output in outputs if output.finish_reason)
    for number, ask in enumerate(requests):
        if str(number) not in aborted:
            assert finished[str(number)] == (ask["beam"] or ask["n"])


def test_the_plan_tells_workers_everything_once():
    """The fake model raises on a sequence added twice or never; a finished one is removed in the next plan."""
    scheduler, model = make_scheduler(), FakeModel(64, BLOCK)
    scheduler.add(make_request("a", range(10), max_tokens=3))
    run_to_end(scheduler, model)
    assert model.specs
    model.run(scheduler.schedule())
    assert not model.specs


def test_a_cached_prefix_is_not_computed_again_and_salts_keep_tenants_apart():
    scheduler, model = make_scheduler(), FakeModel(64, BLOCK)
    computed = {}
    for name, salt in (("first", "x"), ("same", "x"), ("other", "y"), ("none", None)):
        scheduler.add(make_request(name, range(17), max_tokens=1, cache_salt=salt))
        plan, outputs = step(scheduler, model)
        computed[name] = plan.token_count
        assert outputs[0].cached_tokens == 17 - plan.token_count
    assert computed == {"first": 17, "same": 1, "other": 17, "none": 17}
    assert (scheduler.prefix_cache.queries, scheduler.prefix_cache.hits) == (68, 16)


def test_a_prompt_that_is_cached_whole_still_computes_its_last_token():
    scheduler, model = make_scheduler(), FakeModel(64, BLOCK)
    for name in "ab":
        scheduler.add(make_request(name, range(16), max_tokens=1))
        plan, _ = step(scheduler, model)
    assert [len(row.token_ids) for row in plan.rows] == [4]


def test_adapters_do_not_share_blocks():
    scheduler, model = make_scheduler(), FakeModel(64, BLOCK)
    for adapter in (None, "poet", "poet"):
        scheduler.add(make_request(str(adapter), range(16), max_tokens=1, adapter=adapter))
        plan, _ = step(scheduler, model)
        last = plan.token_count
    assert last == 4


def test_parallel_samples_share_the_prompt_and_copy_only_the_written_block():
    scheduler, model = make_scheduler(prefix=False), FakeModel(64, BLOCK)
    scheduler.add(make_request("a", range(10), n=3, max_tokens=2))
    step(scheduler, model)
    assert 64 - scheduler.pool.free == 3  # three sequences, one prompt
    plan, _ = step(scheduler, model)
    assert len(plan.copies) == 2  # the last owner writes in place


def test_least_recently_used_blocks_are_reused_first():
    scheduler, model = make_scheduler(num_blocks=9), FakeModel(9, BLOCK)

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
    scheduler, model = make_scheduler(max_num_seqs=1, scheduling_policy="priority"), FakeModel(64, BLOCK)
    for name, level in (("late", 5), ("urgent", -1), ("normal", 0)):
        scheduler.add(make_request(name, [1, 2], max_tokens=1, priority=level))
    order = [output.request_id for output in run_to_end(scheduler, model)]
    assert order == ["urgent", "normal", "late"]


def test_preemption_takes_the_newest_and_resumes_it():
    scheduler, model = make_scheduler(num_blocks=8, prefix=False, watermark=0.0), FakeModel(8, BLOCK)
    for name in ("old", "new"):
        scheduler.add(make_request(name, [1] * 12, max_tokens=16, seed=ord(name[0])))
    outputs = run_to_end(scheduler, model)
    assert scheduler.preemptions
    finish = [output.request_id for output in outputs if output.finish_reason]
    assert finish == ["old", "new"]
    assert texts(outputs)["new", 0] == expected([1] * 12, ord("n"), 16, [])


def test_the_watermark_keeps_room_for_those_who_run():
    scheduler, model = make_scheduler(num_blocks=10, prefix=False, watermark=0.3), FakeModel(10, BLOCK)
    for name in "ab":
        scheduler.add(make_request(name, [1] * 15, max_tokens=4))
    plan, _ = step(scheduler, model)
    assert len(plan.rows) == 1  # 4 + 4 blocks fit in 10, but not above the 3 that are kept


def test_the_queue_is_bounded():
    scheduler = make_scheduler(max_num_queued_reqs=2)
    scheduler.add(make_request("a", [1]))
    scheduler.add(make_request("b", [1]))
    with pytest.raises(Overloaded):
        scheduler.add(make_request("c", [1]))
    scheduler.abort("a")
    scheduler.add(make_request("c", [1]))


def test_queued_tokens_are_bounded_but_one_request_always_fits():
    scheduler = make_scheduler(max_num_queued_tokens=20)
    scheduler.add(make_request("a", [1] * 30))
    with pytest.raises(Overloaded):
        scheduler.add(make_request("b", [1]))
    step(scheduler, FakeModel(64, BLOCK))
    scheduler.add(make_request("b", [1] * 30))


@pytest.mark.parametrize("length", [0, 64, 1000])
def test_what_can_never_run_is_refused(length):
    with pytest.raises(ContextTooLong):
        make_scheduler().add(make_request("a", [1] * length))


def test_the_context_ends_the_output():
    scheduler, model = make_scheduler(max_model_len=20), FakeModel(64, BLOCK)
    scheduler.add(make_request("a", [1] * 15, max_tokens=100))
    outputs = run_to_end(scheduler, model)
    assert len(outputs) == 5
    assert outputs[-1].finish_reason == "length"


def test_min_tokens_outlives_an_end_token():
    prompt = [1, 2, 3]
    first = expected(prompt, 7, 1, [])
    scheduler, model = make_scheduler(), FakeModel(64, BLOCK)
    scheduler.add(make_request("a", prompt, max_tokens=5, eos=first, params={"min_tokens": 1}))
    scheduler.add(make_request("b", prompt, max_tokens=5, eos=first))
    counts = Counter(output.request_id for output in run_to_end(scheduler, model))
    assert counts["b"] == 1
    assert counts["a"] > 1


def test_a_failed_row_ends_its_request_only():
    scheduler, model = make_scheduler(), FakeModel(64, BLOCK)
    for name in "ab":
        scheduler.add(make_request(name, [ord(name)] * 5, max_tokens=4))
    plan = scheduler.schedule()
    result = model.run(plan)
    broken = RowResult(plan.rows[0].sequence_id, [], error="NaN in the logits")
    outputs = scheduler.update(StepResult(plan.step, [broken, *result.rows[1:]]))
    assert [(output.request_id, output.error) for output in outputs] == [("a", "NaN in the logits"), ("b", None)]
    assert texts(outputs + run_to_end(scheduler, model))["b", 0] == expected([98] * 5, 7, 4, [])
    assert scheduler.pool.free == 64


def test_prompt_logprobs_are_whole_whatever_the_chunks_and_skip_the_cache():
    """The fake worker reports each position's own number; the request gets positions 1 … in order, once."""
    scheduler = make_scheduler(max_num_batched_tokens=5)
    model = FakeModel(64, BLOCK)
    for name in ("warm", "asks"):
        params = {"prompt_logprobs": 0} if name == "asks" else {}
        scheduler.add(make_request(name, range(13), max_tokens=2, params=params))
    outputs = []
    for _ in itertools.takewhile(lambda _: scheduler.has_work, range(99)):
        plan = scheduler.schedule()
        rows = {row.sequence_id: row for row in model.run(plan).rows}
        for row in plan.rows:
            if model.specs[row.sequence_id].params.prompt_logprobs is not None:
                places = range(row.start + 1, min(row.start + len(row.token_ids) + 1, 13))
                found = rows.get(row.sequence_id, RowResult(row.sequence_id, []))
                logprobs = [Logprobs([place], [0.0], [1]) for place in places]
                rows[row.sequence_id] = RowResult(row.sequence_id, found.token_ids, None, logprobs)
        outputs += scheduler.update(StepResult(plan.step, list(rows.values())))
    asked = [output.prompt_logprobs for output in outputs if output.prompt_logprobs]
    assert [entry.token_ids[0] for entry in asked[0]] == list(range(1, 13))
    assert len(asked) == 1


def test_siblings_and_preempted_sequences_are_not_queued_requests():
    scheduler, model = make_scheduler(max_num_queued_reqs=2, max_num_seqs=1), FakeModel(64, BLOCK)
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
    scheduler = make_scheduler(max_num_queued_reqs=1)
    scheduler.add(make_request("new", [1, 2]))
    for name, known in (("unheard", []), ("heard", [Continuation(0, [5])])):
        scheduler.add(make_request(name, range(9), resumes=known))
    with pytest.raises(Overloaded):
        scheduler.add(make_request("newer", [1, 2]))
    scheduler.abort("new")
    scheduler.abort("unheard")
    scheduler.abort("heard", 0)  # its only sequence, before it started
    scheduler.add(make_request("newer", [1, 2]))
    run_to_end(scheduler, FakeModel(64, BLOCK))
    assert scheduler.prefix_cache.queries == 2


def start(*requests: Request) -> tuple[Scheduler, FakeModel]:
    scheduler = make_scheduler(max_num_batched_tokens=7)
    for request in requests:
        scheduler.add(request)
    return scheduler, FakeModel(64, BLOCK)
