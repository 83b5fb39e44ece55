"""`kill_storm.py [MODEL]`: SIGKILL of the engine process under many streams, round after round, loses nothing.

Every round opens the same streams (greedy, seeded, several samples, log-probabilities), kills the engine process at
random moments while all of them run (the next one too, loaded or not, with --kills), and compares what each says with a
run that nobody disturbed. Without MODEL a tiny one of random weights is made. Exits with 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from qa_server import QaServer, serve, until
from tiny_model import write_tiny_model

EVENT = re.compile(rb"data: (.*?)\n\n")
#: With weights that are not quantized, products of more rows go to torch, whose last bits depend on their number.
FEW_ROWS = ("--dtype", "float32", "--max-num-batched-tokens", "32")
WAYS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.9, "seed": 7, "top_p": 0.9},
    {"temperature": 1.0, "seed": 11, "n": 2, "logprobs": 1},
    {"temperature": 0, "presence_penalty": 0.7, "repetition_penalty": 1.2},
]


class Streams:
    """Some streams at once; how far each has come, and in the end all their bytes."""

    def __init__(self, server: QaServer, count: int, max_tokens: int) -> None:
        self._server = server
        self.received = [b""] * count
        self._threads = [
            threading.Thread(target=self._read, args=(place, max_tokens), daemon=True) for place in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, place: int, max_tokens: int) -> None:
        body = {"prompt": f"Story number {place}:", "stream": True, "ignore_eos": True, "max_tokens": max_tokens}
        request = self._server.request("/v1/completions", {**body, **WAYS[place % len(WAYS)]})
        with self._server.connect() as connection:
            connection.settimeout(None)
            connection.sendall(request)
            while part := connection.recv(65536):
                self.received[place] += part

    @property
    def least(self) -> int:
        """Events of the stream that has fewest."""
        return min(received.count(b"data: ") for received in self.received)

    @property
    def any_ended(self) -> bool:
        return not all(thread.is_alive() for thread in self._threads)

    def contents(self) -> list[dict[int, Any]]:
        """What every stream said, choice by choice, once all have ended."""
        for thread in self._threads:
            thread.join()
        return [said(received) for received in self.received]


def said(answer: bytes) -> dict[int, Any]:
    """The parts of each choice put together: where one event ends and the next begins is for the moment to decide."""
    events = EVENT.findall(answer)
    assert events[-1] == b"[DONE]", answer[-300:]
    choices: dict[int, Any] = {}
    for choice in [choice for event in events[:-1] for choice in json.loads(event)["choices"]]:
        index = choice.pop("index")
        choices[index] = joined(choices[index], choice) if index in choices else choice
    return choices


def joined(first: Any, second: Any) -> Any:
    if isinstance(first, dict) and isinstance(second, dict):
        return {name: joined(first.get(name), second.get(name)) for name in {**first, **second}}
    return first + second if isinstance(first, str | list) and second is not None else second or first


def engine_pid(server: QaServer) -> int:
    """Of the engine process that is there now, or as soon as there is one."""
    while not (children := Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()):
        time.sleep(0.001)
    return int(children[0])


def kill_engine(server: QaServer, times: int) -> list[int]:
    victims: list[int] = []
    while len(victims) < times:
        victim = engine_pid(server)
        if victim in victims:
            time.sleep(0.001)
            continue
        if victims:
            time.sleep(random.uniform(0.0, 2.0))
        os.kill(victim, signal.SIGKILL)
        victims.append(victim)
    return victims


def storm(server: QaServer, rounds: int, kills: int, count: int, max_tokens: int) -> int:
    """How many streams differed."""
    expected = Streams(server, count, max_tokens).contents()
    lost = 0
    for number in range(1, rounds + 1):
        began = time.monotonic()
        streams = Streams(server, count, max_tokens)
        kill_after = random.randrange(1, max_tokens // 2)
        while streams.least < kill_after and not streams.any_ended:  # several tokens may come in one event
            time.sleep(0.001)
        victims = kill_engine(server, kills)
        contents = streams.contents()
        different = [place for place in range(count) if contents[place] != expected[place]]
        lost += len(different)
        say(
            f"round {number}: engine {victims} killed after {kill_after} events of the slowest of {count} streams; "
            f"{count - len(different)} equal after {time.monotonic() - began:.1f} s, different: {different or 'none'}"
        )
    return lost


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def check_books(server: QaServer, restarts: int) -> None:
    accepted, completed, errored, cancelled = (
        server.metric(f"requests_{name}_total") for name in ("accepted", "completed", "errored", "cancelled")
    )
    assert (errored, cancelled) == (0, 0), (errored, cancelled)
    assert accepted == completed, (accepted, completed)
    assert 0 < server.metric("core_restarts_total") <= restarts, "one that was killed while it loaded does not count"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=1, help="in a round")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or write_tiny_model(Path(folder))
        flags = () if options.model else FEW_ROWS
        with serve(model, Path(folder), "--max-model-len", "1024", *flags) as server:
            server.canary()
            before = server.footprint().descriptors
            lost = storm(server, options.rounds, options.kills, options.streams, options.max_tokens)
            check_books(server, options.rounds * options.kills)
            until(lambda: server.footprint().descriptors <= before, "descriptors stayed open")
    say(f"{options.rounds * options.kills} kills under {options.streams} streams: {lost} streams lost or changed")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
