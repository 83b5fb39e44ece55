"""`soak.py --minutes 30`: mixed callers for as long as one likes; the server must end as it began.

Callers read whole answers and streams, leave in the middle, send nonsense, read slowly, bring long prompts; what is
asked again is compared with what was said at the beginning. In the first half the engine process is killed at times.
Once a minute everybody rests: then no request may be open, no block in use, the ledger must balance; and what all
processes hold is printed. In the last third memory must be flat. Exits with 1 when anything of that fails.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from qa_server import QaServer, parse, read_to_end, serve, until
from tiny_model import write_tiny_model

COMPLETIONS = "/v1/completions"
ASKS: list[dict[str, Any]] = [
    {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 60},
    {"prompt": "A list: 1, 2, 3,", "temperature": 0.9, "seed": 7, "max_tokens": 80},
    {"prompt": ["Two", "prompts"], "temperature": 1.0, "seed": 11, "n": 2, "logprobs": 1, "max_tokens": 30},
    {"prompt": "Penalties", "temperature": 0, "presence_penalty": 0.7, "max_tokens": 100},
    {"prompt": "A long beginning that many share. " * 20, "temperature": 0, "max_tokens": 40},
]
NONSENSE: list[bytes] = [
    b"", b"{", b"[" * 5000, b'{"model": 1}', b'{"model": "nobody", "prompt": "x"}', b'{"prompt": []}', b"\xff" * 100,
    b'{"model": "tiny", "prompt": "x", "n": 100000}', b'{"model": "tiny", "prompt": "' + b"x" * 200_000 + b'"}',
]  # fmt: skip
MIB = 2**20


class Soak:
    def __init__(self, server: QaServer, clients: int, rest: float) -> None:
        self._server = server
        self._rest = rest
        self._expected = [self._texts(ask, stream=False) for ask in ASKS]
        self._working = threading.Event()
        self._ended = threading.Event()
        self._busy = [False] * clients
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self._ways: dict[Callable[[random.Random], None], int] = {
            self._read_whole: 4, self._read_stream: 4, self._leave: 3, self._send_nonsense: 3, self._read_slowly: 1,
            self._bring_a_long_prompt: 1,
        }  # fmt: skip
        self._threads = [threading.Thread(target=self._live, args=(place,)) for place in range(clients)]
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------------ the day of a caller

    def _live(self, place: int) -> None:
        chance = random.Random(place)
        while not self._ended.is_set():
            self._working.wait()
            self._busy[place] = True
            (way,) = chance.choices(list(self._ways), list(self._ways.values()))
            try:
                if self._working.is_set():
                    way(chance)
                    self.done[way.__name__.strip("_")] += 1
            except (AssertionError, OSError) as error:
                self.failures.append(f"{way.__name__}: {error!r}"[:2000])
                sys.stdout.write(f"failed: {self.failures[-1]}\n")
            self._busy[place] = False
            time.sleep(chance.expovariate(1 / self._rest))

    def _texts(self, ask: dict[str, Any], stream: bool) -> dict[int, str]:
        """What each choice says."""
        reply = self._server.post(COMPLETIONS, {"ignore_eos": True, **ask, "stream": stream})
        assert reply.status == 200, reply
        assert reply.complete, reply.body[-500:]
        texts: dict[int, str] = {}
        answers = reply.events if stream else [reply.json]
        assert not stream or answers.pop() == "[DONE]"
        for answer in answers:
            for choice in answer["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
        return texts

    def _read_whole(self, chance: random.Random) -> None:
        place = chance.randrange(len(ASKS))
        assert self._texts(ASKS[place], stream=False) == self._expected[place]

    def _read_stream(self, chance: random.Random) -> None:
        place = chance.randrange(len(ASKS))
        assert self._texts(ASKS[place], stream=True) == self._expected[place]

    def _leave(self, chance: random.Random) -> None:
        with self._ask(chance, stream=True) as connection:
            for _ in range(chance.randrange(4)):
                connection.recv(4096)

    def _send_nonsense(self, chance: random.Random) -> None:
        reply = self._server.post(COMPLETIONS, chance.choice(NONSENSE))
        assert 400 <= reply.status < 500, reply

    def _read_slowly(self, chance: random.Random) -> None:
        with self._ask(chance, stream=True) as connection:
            received = b""
            while part := connection.recv(512):
                received += part
                time.sleep(0.005)
        assert b"[DONE]" in received, received[-500:]

    def _bring_a_long_prompt(self, chance: random.Random) -> None:
        with self._ask(chance, stream=False, prompt="y" * chance.randrange(2000, 7000)) as connection:
            reply = parse(read_to_end(connection))
        assert reply.status == 200, reply

    def _ask(self, chance: random.Random, **fields: Any) -> socket.socket:
        connection = self._server.connect()
        body = {"prompt": f"Story {chance.random()}", "max_tokens": chance.randrange(1, 300), "temperature": 0}
        connection.sendall(self._server.request(COMPLETIONS, {"ignore_eos": True, **body, **fields}))
        return connection

    # ------------------------------------------------------------------ the clock

    def work(self, seconds: float, kill: bool) -> None:
        """Let everybody work, then rest until nothing is open."""
        self._working.set()
        time.sleep(seconds / 2)
        if kill:
            _kill_engine(self._server)
            self.done["engine killed"] += 1
        time.sleep(seconds / 2)
        self._working.clear()
        until(lambda: not any(self._busy), "a caller never came back")
        until(self._server.idle, "something stayed open, or the ledger does not balance")

    def end(self) -> None:
        self._ended.set()
        self._working.set()
        for thread in self._threads:
            thread.join()


def _kill_engine(server: QaServer) -> None:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)


def _resident(pid: int) -> float:
    """MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / MIB


def _growth(samples: list[float]) -> float:
    """What the straight line through the samples gains from the first to the last."""
    if len(samples) < 2:
        return 0.0
    return statistics.linear_regression(range(len(samples)), samples).slope * (len(samples) - 1)


def run(server: QaServer, options: argparse.Namespace) -> list[str]:
    """What went wrong."""
    soak = Soak(server, options.clients, options.rest)
    resident: list[float] = []
    began, killed = time.monotonic(), 0.0
    try:
        while (minutes := (time.monotonic() - began) / 60) < options.minutes:
            kill = minutes < options.minutes / 2 and minutes - killed >= options.kill_minutes
            killed = minutes if kill else killed
            soak.work(options.seconds, kill)
            held, each = server.footprint(), [_resident(pid) for pid in server.pids()]
            resident.append(sum(each))
            accepted = server.metric("requests_accepted_total")
            restarts = server.metric("core_restarts_total")
            minutes = (time.monotonic() - began) / 60
            sizes = " + ".join(f"{size:.0f}" for size in each)
            sys.stdout.write(
                f"minute {minutes:.1f}: {sizes} MiB, {held.descriptors} descriptors, {held.threads} threads, "
                f"{accepted:.0f} requests balance, {restarts:.0f} restarts, {len(soak.failures)} failures\n"
            )
            sys.stdout.flush()
    finally:
        soak.end()
    sys.stdout.write(", ".join(f"{name} {count}" for name, count in sorted(soak.done.items())) + "\n")
    last = resident[-max(2, len(resident) // 3) :]
    grown = _growth(last)
    sys.stdout.write(f"between the last {len(last)} rests memory grew by {grown:.1f} MiB\n")
    if grown > options.most_growth:
        soak.failures.append(f"memory grew by {grown:.1f} MiB")
    return soak.failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="default: a tiny one of random weights")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=4, help="callers at a time")
    parser.add_argument("--rest", type=float, default=0.2, help="seconds a caller rests between requests, on average")
    parser.add_argument("--kill-minutes", type=float, default=3, help="minutes between kills of the engine")
    parser.add_argument("--seconds", type=float, default=60, help="of work between two rests")
    parser.add_argument("--most-growth", type=float, default=10, help="MiB that the last third may gain")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="octavo-soak-") as folder:
        model = options.model or write_tiny_model(Path(folder))
        flags = ("--max-model-len", "8192", "--kv-cache-memory", "8MiB") if options.model is None else ()
        with serve(model, Path(folder), *flags) as server:
            failures = run(server, options)
    if failures:
        sys.stdout.write(f"{len(failures)} failures, the last: {failures[-1]}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
