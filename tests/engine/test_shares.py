"""What a request costs: its share of each step, and all shares together the step."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation.callers import Spelling
from simulation.oracle import VOCABULARY
from simulation.worker import Worker

from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.engine.output import OutputProcessor
from octavo.engine.tokenizer import Tokenizer
from octavo.metrics import Metrics
from octavo.plan import Capacity
from octavo.request import Request, RequestMetrics, SamplingParams


class Machine:
    """Its clock and its meter go on with every look."""

    def __init__(self) -> None:
        self.looks = 0

    def clock(self) -> float:
        self.looks += 1
        return self.looks**2 * 0.25

    def meter(self) -> float:
        self.looks += 1
        return self.looks**2 * 3.0


def make_request(name: str, length: int, max_tokens: int, n: int) -> Request:
    params = SamplingParams(max_tokens=max_tokens, n=n)
    tokens = [1 + place % 5 for place in range(length)]
    return Request(request_id=name, prompt_token_ids=tokens, params=params, max_tokens=max_tokens, seed=3)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(1, 3)), min_size=1, max_size=6),
    st.integers(1, 20),
    st.booleans(),
)
def test_shares_add_up_to_the_steps(asked, budget: int, measured: bool) -> None:
    machine = Machine()
    capacity = Capacity(num_blocks=40, block_size=4, max_model_len=64, vocab_size=VOCABULARY)
    config = EngineConfig.of(max_num_batched_tokens=budget, max_num_seqs=4)
    worker = Worker(capacity, watch=lambda plan: None)
    core = EngineCore(config, worker, clock=machine.clock, meter=machine.meter if measured else None)
    outputs = OutputProcessor(cast(Tokenizer, Spelling()), Metrics("tiny", 64), machine.clock)
    costs: dict[str, RequestMetrics] = {}
    for number, (length, max_tokens, n) in enumerate(asked):
        request = make_request(f"r{number}", length, max_tokens, n)
        outputs.add(request, None, "delta")
        costs[request.request_id] = outputs[request.request_id].times
        core.add(request)
    seconds, joules = 0.0, 0.0
    while core.has_work:
        step = core.step()
        assert sum(step.shares.values()) == pytest.approx(step.work)
        seconds += step.seconds
        joules += step.joules or 0.0
        for report in outputs.take(step).reports:
            assert report.metrics is costs[report.request_id]
    assert sum(cost.compute_seconds for cost in costs.values()) == pytest.approx(seconds)
    if measured:
        assert sum(cost.energy_joules or 0.0 for cost in costs.values()) == pytest.approx(joules)
    else:
        assert {cost.energy_joules for cost in costs.values()} == {None}


def test_a_longer_prompt_costs_more_of_the_same_step() -> None:
    capacity = Capacity(num_blocks=40, block_size=4, max_model_len=64, vocab_size=VOCABULARY)
    core = EngineCore(EngineConfig(), Worker(capacity, watch=lambda plan: None))
    core.add(make_request("long", 30, 2, 1))
    core.add(make_request("short", 10, 2, 1))
    assert core.step().shares == {"long": 30.0, "short": 10.0}
    second = core.step().shares
    assert second["long"] == pytest.approx(1 + 30 / 1024)
