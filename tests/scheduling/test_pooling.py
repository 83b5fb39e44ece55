"""Requests whose prompts are pooled, among those that are continued: whatever the schedule, the vector is the same."""

from __future__ import annotations

from random import Random

import pytest
from simulation.oracle import VOCABULARY, Line
from simulation.worker import Worker
from test_scheduler import expected, make_request, run_to_end, texts

from octavo.config import SchedulerConfig
from octavo.errors import ContextTooLong
from octavo.plan import Ability, Capacity, Row, RowResult, StepPlan, StepResult
from octavo.request import Output, PoolingParams, Request
from octavo.scheduling.scheduler import Scheduler

BLOCK, LONGEST = 4, 48


class PoolingWorker(Worker):
    """What it pools are the numbers stored for the positions that it has computed since the sequence came."""

    def __init__(self, num_blocks: int) -> None:
        capacity = Capacity(num_blocks=num_blocks, block_size=BLOCK, max_model_len=LONGEST, vocab_size=VOCABULARY)
        super().__init__(capacity, watch=lambda plan: None)
        self.taken_in: dict[int, list[int]] = {}

    def run(self, plan: StepPlan) -> StepResult:
        for sequence_id in (*plan.removed, *(spec.sequence_id for spec in plan.added)):
            self.taken_in.pop(sequence_id, None)
        return super().run(plan)

    def _compute(self, row: Row, table: list[int]) -> RowResult | None:
        drawn = super()._compute(row, table)
        spec = self.specs[row.sequence_id]
        if spec.pooling is None:
            return drawn
        assert row.draws == 0
        positions = range(row.start, row.start + len(row.token_ids))
        fresh = [self.content[table[position // BLOCK]][position % BLOCK] for position in positions]
        taken = self.taken_in.setdefault(row.sequence_id, [])
        if spec.pooling.needs_every_position:
            assert len(taken) == row.start, "a position is missing"
            taken += fresh
        else:
            taken[:] = fresh[-1:]
        return None if positions.stop < spec.prompt_length else RowResult(row.sequence_id, [], pooled=packed(taken))


def packed(values: list[int]) -> bytes:
    return str(hash(tuple(values))).encode()


def make_scheduler(num_blocks: int, *, whole_prompts: bool = False, **config: int) -> Scheduler:
    return Scheduler(
        SchedulerConfig(**config),
        num_blocks=num_blocks,
        block_size=BLOCK,
        max_model_len=LONGEST,
        hash_seed=b"seed",
        whole_prompts=whole_prompts,
    )


def pooled_request(request_id: str, prompt: list[int], pooling: str = "mean") -> Request:
    return make_request(request_id, prompt, pooling=PoolingParams(pooling=pooling, normalize=True))


def alone(request: Request) -> bytes:
    view = Line(request.prompt_token_ids, 0).view
    assert request.pooling is not None
    return packed(view if request.pooling.needs_every_position else view[-1:])


def vectors(outputs: list[Output]) -> dict[str, bytes]:
    assert all(output.finish_reason == "stop" for output in outputs if output.pooled is not None)
    return {output.request_id: output.pooled for output in outputs if output.pooled is not None}


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_vectors_and_texts_are_those_of_each_alone(seed: int, ahead: int) -> None:
    """Little room: prompts come in pieces, sequences are preempted, beginnings are found in the cache."""
    random = Random(seed)
    scheduler = make_scheduler(16, max_num_batched_tokens=random.choice([3, 7, 16]), max_num_seqs=4, watermark=0.0)
    beginnings = [[random.randrange(VOCABULARY - 1) for _ in range(20)] for _ in range(2)]
    asked: list[Request] = []
    for number in range(14):
        prompt = random.choice(beginnings)[: random.randrange(21)]
        prompt = prompt + [random.randrange(VOCABULARY - 1) for _ in range(random.randrange(1, 20))]
        if random.random() < 0.6:
            asked.append(pooled_request(str(number), prompt, random.choice(["mean", "last", "cls"])))
        else:
            asked.append(make_request(str(number), prompt, seed=number))
        scheduler.add(asked[-1])
    outputs = run_to_end(scheduler, PoolingWorker(16), ahead=ahead)
    found, said = vectors(outputs), texts(outputs)
    for request in asked:
        if request.pooling is not None:
            assert found.pop(request.request_id) == alone(request)
        else:
            assert said[request.request_id, 0] == expected(request.prompt_token_ids, request.seed, 8, [])
    assert not found
    assert scheduler.pool.free == 16


def test_only_the_last_token_may_be_pooled_from_a_cached_beginning() -> None:
    scheduler, worker = make_scheduler(32), PoolingWorker(32)
    prompt = list(range(20))
    cached = {}
    for pooling in ("last", "mean", "last", "mean"):
        scheduler.add(pooled_request(pooling, prompt, pooling))
        (output,) = run_to_end(scheduler, worker)
        cached[pooling] = output.cached_tokens
    assert cached == {"last": 16, "mean": 0}


@pytest.mark.parametrize("seed", range(10))
def test_whole_prompts_are_never_cut_and_wait_for_a_step_with_room(seed: int) -> None:
    random = Random(seed)
    budget = LONGEST + random.randrange(20)
    scheduler = make_scheduler(30, whole_prompts=True, max_num_batched_tokens=budget, max_num_seqs=5)
    worker = PoolingWorker(30)
    asked = [
        pooled_request(str(number), random.choices(range(VOCABULARY - 1), k=random.randint(1, LONGEST)))
        for number in range(20)
    ]
    for request in asked:
        scheduler.add(request)
    order: list[str] = []
    while scheduler.has_work:
        plan = scheduler.schedule()
        assert plan.rows
        assert plan.token_count <= budget
        for row in plan.rows:
            assert row.start == 0
            assert len(row.token_ids) == worker_length(plan, row)
        outputs = scheduler.update(worker.run(plan))
        order += [output.request_id for output in outputs]
        for output in outputs:
            assert output.pooled == alone(asked[int(output.request_id)])
            assert output.cached_tokens == 0
    assert order == [request.request_id for request in asked], "first come, first served"


def worker_length(plan: StepPlan, row: Row) -> int:
    return next(spec.prompt_length for spec in plan.added if spec.sequence_id == row.sequence_id)


def test_a_prompt_that_is_pooled_may_fill_the_context() -> None:
    scheduler = make_scheduler(64)
    scheduler.add(pooled_request("a", [1] * LONGEST))
    assert vectors(run_to_end(scheduler, PoolingWorker(64))).keys() == {"a"}
    with pytest.raises(ContextTooLong, match=f"1 to {LONGEST} fit"):
        scheduler.add(pooled_request("b", [1] * (LONGEST + 1)))
    with pytest.raises(ContextTooLong, match=f"1 to {LONGEST - 1} fit"):
        scheduler.add(make_request("c", [1] * LONGEST))


def test_one_that_is_aborted_or_fails_leaves_nothing_behind() -> None:
    scheduler, worker = make_scheduler(32, max_num_batched_tokens=8), PoolingWorker(32)
    for request_id in "abc":
        scheduler.add(pooled_request(request_id, [3] * 20))
    worker.run(plan := scheduler.schedule())
    scheduler.abort("a")
    scheduler.update(StepResult(plan.step, []))
    worker.faulty_row = 0
    outputs = run_to_end(scheduler, worker)
    assert [output.request_id for output in outputs if output.error] == ["b"]
    assert vectors(outputs).keys() == {"c"}
    assert scheduler.pool.free == 32


def test_an_ability_of_whole_prompts_needs_steps_with_room_for_the_longest() -> None:
    assert Ability().whole_prompts is False
    with pytest.raises(AssertionError):
        make_scheduler(30, whole_prompts=True, max_num_batched_tokens=LONGEST - 1)
