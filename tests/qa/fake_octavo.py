"""The real HTTP server with a scripted engine, as a process.

Takes `--step-seconds` and every field of `Limits` as a flag.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from dataclasses import fields
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "api"))

from fake_engine import FakeEngine
from fake_server import serving

from octavo.api.limits import Limits


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-seconds", type=float, default=0.0)
    for limit in fields(Limits):
        parser.add_argument(f"--{limit.name.replace('_', '-')}", type=type(limit.default), default=limit.default)
    chosen = vars(parser.parse_args())
    engine = FakeEngine(step_seconds=chosen.pop("step_seconds"), max_model_len=10**6)
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    async with serving(engine, Limits(**chosen)) as (_, port):
        sys.stdout.write(f"a scripted engine serves fake-model on http://127.0.0.1:{port}\n")
        sys.stdout.flush()
        await stopped.wait()


asyncio.run(main())
