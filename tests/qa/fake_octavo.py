"""The real HTTP server with a scripted engine, as a process.

Takes as flags how long a step lasts and an answer is, how many requests run and wait, and every field of `Limits`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from dataclasses import fields
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "api"))

from fake_engine import FakeEngine, hello
from fake_server import serving

from octavo.api.limits import Limits
from octavo.config import EngineConfig, SchedulerConfig


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-seconds", type=float, default=0.0)
    parser.add_argument("--max-num-seqs", type=int, default=2**16)
    parser.add_argument("--characters", type=int, default=0)
    parser.add_argument("--max-num-queued-reqs", type=int)
    parser.add_argument("--data-dir")
    for limit in fields(Limits):
        parser.add_argument(
            f"--{limit.name.replace('_', '-')}",
            type=float if limit.default is None else type(limit.default),
            default=limit.default,
        )
    chosen = vars(parser.parse_args())
    seats, queue = chosen.pop("max_num_seqs"), chosen.pop("max_num_queued_reqs")
    data_dir = chosen.pop("data_dir")
    text = ("All work and no play. " * (chosen["characters"] // 22 + 1))[: chosen.pop("characters")]
    engine = FakeEngine(
        reply=(lambda _prompt, _index: text) if text else hello,
        step_seconds=chosen.pop("step_seconds"),
        seats=asyncio.Semaphore(seats),
        config=EngineConfig(scheduler=SchedulerConfig(max_num_seqs=seats, max_num_queued_reqs=queue)),
        max_model_len=10**6,
    )
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    async with serving(engine, Limits(**chosen), data_dir=data_dir) as (_, port):
        sys.stdout.write(f"a scripted engine serves fake-model on http://127.0.0.1:{port}\n")
        sys.stdout.flush()
        await stopped.wait()


asyncio.run(main())
