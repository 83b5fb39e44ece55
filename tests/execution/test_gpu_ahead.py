"""On a GPU that is none: what requests say does not depend on whether steps are submitted ahead."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from fake_device import FakeDevice
from quick_kernels import quick
from test_gpu_runner import LLAMA, Executor, engine, run, running_on, same

from octavo.engine.core import EngineCore
from octavo.execution.worker import Worker
from octavo.plan import DRAWN
from octavo.request import Request, SamplingParams


def any_request(number: int, random: Random) -> Request:
    most = random.randint(4, 9)
    params: dict[str, Any] = {"temperature": random.choice([0.0, 0.9]), "max_tokens": most}
    habits: list[dict[str, Any]] = [
        {"repetition_penalty": 1.4, "frequency_penalty": 0.5},
        {"n": random.choice([2, 3]), "temperature": 0.9},
        {"logprobs": 2},
        {"prompt_logprobs": 1},
        {"stop_token_ids": random.sample(range(96), 30), "min_tokens": min(2, most)},
        {"top_p": 0.8, "top_k": 20},
    ]
    for habit in random.sample(habits, random.randint(0, 3)):
        params |= habit
    return Request(
        request_id=f"r{number}",
        prompt_token_ids=random.choices(range(96), k=random.randint(8, 24)),
        params=SamplingParams(**params),
        max_tokens=most,
        seed=number,
        bad_words=random.choice([[], [], [[5], [random.randrange(96), random.randrange(96)]]]),
    )


def test_any_requests_say_the_same_ahead(tmp_path: Path) -> None:
    """With so few blocks that sequences are preempted."""
    random = Random(1)
    requests = [any_request(number, random) for number in range(5)]
    told = []
    for ahead in (True, False):
        config, checkpoint = engine(tmp_path, LLAMA, async_scheduling=ahead, num_gpu_blocks_override=5, watermark=0.0)
        with running_on(quick):
            executor = Executor(Worker(config, checkpoint, FakeDevice()))
            core = EngineCore(config, executor, hash_seed=b"x")
            told.append(run(core, requests))
        assert any(DRAWN in row.token_ids for plan in executor.plans for row in plan.rows) == ahead
        assert core.scheduler.preemptions > 0
        assert core.scheduler.pool.free == core.scheduler.pool.count
    same(*told)
