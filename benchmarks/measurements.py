"""The contestants and what is measured of each: decoding, prefill, a server under load, its start and memory.

Knows nothing of rounds, ratios or targets: every figure goes to a `record` function under the name of its row.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol, TypeVar

from load import load
from peers import LlamaCpp
from processes import PATIENCE_S, Contestant, Server

from octavo.checkpoint import Checkpoint
from octavo.engine.tokenizer import Tokenizer

Name = TypeVar("Name")

BEGINNING = 6  # tokens
MIB_IN_GB = 1e9 / 2**20


@dataclass(frozen=True)
class Work:
    """How much of everything."""

    streams: tuple[int, ...] = (1, 8, 32)
    prompt_tokens: int = 100
    new_tokens: int = 128
    prefills: tuple[int, ...] = (512, 1000)
    prefill_prompts: int = 4
    least_requests: int = 4  # of a measurement: few streams repeat

    def calls(self, streams: int) -> int:
        return -(-self.least_requests // streams)


QUICK = Work(new_tokens=16, prefill_prompts=1, least_requests=1)


class Prompts:
    """Endless prompts from one text; no two begin alike, so nothing is found in a prefix cache."""

    text = Path(__file__).parent.parent / "LICENSE"

    def __init__(self, checkpoint: Checkpoint, seed: int = 0) -> None:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
        self.token_ids = tokenizer.encode(self.text.read_text(), add_special_tokens=False)
        self.random = random.Random(seed)

    def draw(self, lengths: Sequence[int]) -> list[list[int]]:
        """A prompt of each length: a beginning of its own, then a piece of the text."""
        return [self._draw(length) for length in lengths]

    def _draw(self, length: int) -> list[int]:
        beginning = self.random.choices(self.token_ids, k=min(BEGINNING, length))
        rest = length - len(beginning)
        assert rest < len(self.token_ids), f"{self.text} is too short"
        start = self.random.randrange(len(self.token_ids) - rest)
        return beginning + self.token_ids[start : start + rest]


def turns(names: Sequence[Name], rounds: int) -> Iterator[tuple[int, Name]]:
    """The number of the round and whose turn it is; every second round goes backwards: A B, B A, A B …"""
    for number in range(1, rounds + 1):
        for name in names if number % 2 else reversed(names):
            yield number, name


Record = Callable[[str, float], None]


class Peer(Protocol):
    """A contestant. Offline figures come from whatever it offers; servers all get the same load."""

    name: str
    weights: Path

    def decode(self, work: Work, record: Record) -> None: ...

    def prefill(self, work: Work, record: Record) -> None: ...

    def serve(self, streams: int, /) -> tuple[list[str], dict[str, str]]:
        """Command and environment of a server for that many streams."""

    def stop(self) -> None: ...


class Engine:
    """octavo or vLLM: a Python library, in a process that stays loaded between its turns."""

    def __init__(
        self,
        name: str,
        weights: Path,
        prompts: Prompts,
        start: Callable[[], Contestant],
        command: list[str],
        environment: dict[str, str],
    ) -> None:
        self.name, self.weights, self.prompts = name, weights, prompts
        self.start, self.command, self.environment = start, command, environment
        self.process: Contestant | None = None

    def ask(self, prompts: list[list[int]], max_tokens: int) -> float:
        if self.process is None:
            self.process = self.start()
            self.process.read()
        seconds: float = self.process.ask(prompts=prompts, max_tokens=max_tokens)["seconds"]
        return seconds

    def decode(self, work: Work, record: Record) -> None:
        for streams in work.streams:
            calls = work.calls(streams)
            asked = [self.prompts.draw([work.prompt_tokens] * streams) for _ in range(calls + 4)]
            self.ask(asked.pop(), 4)  # warm up
            prompts_s = median(self.ask(asked.pop(), 1) for _ in range(3))  # one slow moment must not make us quick
            seconds = sum(self.ask(asked.pop(), work.new_tokens) for _ in range(calls)) - calls * prompts_s
            record(f"decode {streams}", calls * streams * (work.new_tokens - 1) / seconds)

    def prefill(self, work: Work, record: Record) -> None:
        for length in work.prefills:
            count = work.prefill_prompts
            self.ask(self.prompts.draw([length] * count), 1)  # warm up
            record(f"prefill {length}", count * length / self.ask(self.prompts.draw([length] * count), 1))

    def serve(self, _: int, /) -> tuple[list[str], dict[str, str]]:
        return self.command, self.environment

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.process = None


class Llama:
    """llama.cpp: programs that measure themselves, and a server with a slot for each stream."""

    def __init__(self, name: str, weights: Path) -> None:
        self.name, self.weights = name, weights

    def decode(self, work: Work, record: Record) -> None:
        output = printed(LlamaCpp.batched_bench(self.weights, work.streams, work.prompt_tokens, work.new_tokens))
        for line in output.splitlines():
            if line.startswith("{"):
                result = json.loads(line)
                record(f"decode {result['pl']}", result["speed_tg"])

    def prefill(self, work: Work, record: Record) -> None:
        for result in json.loads(printed(LlamaCpp.bench(self.weights, work.prefills))):
            record(f"prefill {result['n_prompt']}", result["avg_ts"])

    def serve(self, streams: int, /) -> tuple[list[str], dict[str, str]]:
        return LlamaCpp.serve(self.weights, streams), {}

    def stop(self) -> None:
        pass


def printed(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    if done.returncode:
        name = Path(command[0]).name
        raise RuntimeError(f"{name} ended with {done.returncode}\n{' '.join(command)}\n{done.stderr[-4000:]}")
    return done.stdout


def measure_servers(peer: Peer, parts: set[str], work: Work, prompts: Prompts, record: Record) -> None:
    """One server for all numbers of streams, or one for each if the peer wants them to differ."""
    with ExitStack() as running:
        server, running_command = None, None
        for streams in work.streams if "http" in parts else work.streams[:1]:
            command, environment = peer.serve(streams)
            if server is None or command != running_command:
                running.close()
                first = server is None
                read_once(peer.weights)
                server, running_command = Server(command, environment), command
                running.callback(server.stop)
                server.wait_ready()
                server.first_token(prompts.draw([work.prompt_tokens])[0])
                if first and "start" in parts:
                    record("start", server.age())
                    record_memory(server, "memory first", record)
            if "http" in parts:
                measure_load(server, streams, work, prompts, record)
        if server is not None and parts >= {"http", "start"}:
            record_memory(server, "memory all", record)


def measure_load(server: Server, streams: int, work: Work, prompts: Prompts, record: Record) -> None:
    model = server.model()
    load(server.port, model, prompts.draw([work.prompt_tokens] * streams), 4, streams)  # warm up
    asked = prompts.draw([work.prompt_tokens] * streams * work.calls(streams))
    result = load(server.port, model, asked, work.new_tokens, streams)
    record(f"http {streams}", result.tokens_per_s)
    record(f"ttft {streams}", result.first_ms)


def record_memory(server: Server, key: str, record: Record) -> None:
    if (mib := server.memory_mib("Pss")) is not None:
        record(key, mib / MIB_IN_GB)


def read_once(weights: Path) -> None:
    """Into the page cache."""
    for path in [weights] if weights.is_file() else sorted(weights.iterdir()):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
