"""`flood.py [rate] [streams] [overload] [stalled]`: the HTTP server under load, before a scripted engine or a model.

    rate      how many short requests a second go through, each on a connection of its own
    streams   many streams at once: every one complete, byte for byte
    overload  ten times as many requests as the engine can serve: what fits is served, the rest refused at once
    stalled   many clients that ask for a long stream and never read it: bounded memory, others served meanwhile

Requests are counted here and in the server's metrics, and both must agree. Exits with 1 when anything is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import uvloop
from qa_server import QaServer, serve, serve_fake

PATH = "/v1/completions"
STEP_SECONDS = 0.05
QUICK_REFUSAL = 0.05  # seconds, of 99 in 100
LEAST_GOODPUT = 0.9  # of what is served without a flood
MOST_PER_STALLED = 4 * 2**20  # bytes: what the kernel buffers for it is the kernel's


@dataclass(slots=True)
class Sample:
    """One request as its client saw it. Times in seconds."""

    status: int = 0  # 0: the connection ended without an answer
    complete: bool = False
    text: str = ""
    first: float = 0.0
    whole: float = 0.0


async def ask(server: QaServer, tokens: int, *, stream: bool = False) -> Sample:
    began = time.perf_counter()
    received, first = bytearray(), 0.0
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = {"prompt": "Once", "max_tokens": tokens, "stream": stream, "temperature": 0, "ignore_eos": True}
        writer.write(server.request(PATH, body))
        while part := await reader.read(65536):
            first = first or time.perf_counter() - began
            received += part
        writer.close()
    except ConnectionError:
        pass
    sample = judged(bytes(received), stream=stream)
    sample.first, sample.whole = first, time.perf_counter() - began
    return sample


def judged(received: bytes, *, stream: bool) -> Sample:
    head, _, body = received.partition(b"\r\n\r\n")
    if not head:
        return Sample()
    status = int(head.split()[1])
    if status == 200 and stream:
        events = re.findall(rb"data: (\{.*\})\n", body)
        text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
        return Sample(status, body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), text)
    length = re.search(rb"content-length: (\d+)", head)
    complete = length is not None and int(length[1]) == len(body)
    return Sample(status, complete, json.loads(body)["choices"][0]["text"] if status == 200 and complete else "")


class Ledger:
    """What clients sent and saw since it was made, against what the server counted."""

    def __init__(self, server: QaServer) -> None:
        self._server = server
        self._before = self._counted()

    def _counted(self) -> Counter[str]:
        text = self._server.get("/metrics").body.decode()
        lines = re.findall(rf'outcome="(\w+)",path="{PATH}",status="(\d+)"}} (\S+)', text)
        return Counter({f"{outcome} {status}": int(float(count)) for outcome, status, count in lines})

    def lost(self, samples: Sequence[Sample]) -> int:
        """Requests without a complete answer, or that the two sides count differently."""
        counted = self._counted() - self._before
        seen = Counter(f"complete {sample.status}" for sample in samples if sample.complete)
        unequal = sum(((seen - counted) + (counted - seen)).values())
        without = sum(not sample.complete for sample in samples)
        accepted, *ended = (
            int(self._server.metric(f"requests_{what}_total"))
            for what in ("accepted", "completed", "errored", "cancelled")
        )
        say(f"  {len(samples)} sent = {dict(seen)} + {without} lost; counted differently: {unequal}")
        if accepted:  # a scripted engine counts nothing
            say(f"  the engine accepted {accepted} = {' + '.join(map(str, ended))} completed, errored and cancelled")
        return without + unequal + abs(accepted - sum(ended))


class Memory:
    """The server's resident memory while something runs."""

    def __init__(self, server: QaServer) -> None:
        self._server = server
        self.before = self.most = server.footprint().rss

    async def watch(self) -> None:
        while True:
            self.most = max(self.most, self._server.footprint().rss)
            await asyncio.sleep(0.2)

    def __str__(self) -> str:
        return f"memory {self.before / 2**20:.0f} MiB before, {self.most / 2**20:.0f} MiB at most"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def milliseconds(values: Sequence[float]) -> str:
    ordered = sorted(values) or [0.0]
    p50, p99, most = (1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99, 1.0))
    return f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, most {most:.0f} ms"


async def rate(server: QaServer, clients: int, seconds: float) -> bool:
    ledger, began = Ledger(server), time.perf_counter()
    samples: list[Sample] = []

    async def client() -> None:
        while time.perf_counter() < began + seconds:
            samples.append(await ask(server, 1))

    await asyncio.gather(*(client() for _ in range(clients)))
    passed = time.perf_counter() - began
    say(f"rate: {len(samples) / passed:.0f} requests/s with {clients} clients for {passed:.1f} s")
    say(f"  {milliseconds([sample.whole for sample in samples])}")
    return ledger.lost(samples) == 0


async def streams(server: QaServer, count: int, tokens: int) -> bool:
    ledger, memory, began = Ledger(server), Memory(server), time.perf_counter()
    watching = asyncio.create_task(memory.watch())
    samples = await asyncio.gather(*(ask(server, tokens, stream=True) for _ in range(count)))
    seconds = time.perf_counter() - began
    watching.cancel()
    say(f"streams: {count} at once, {tokens} tokens each, in {seconds:.1f} s: {count * tokens / seconds:.0f} tokens/s")
    say(f"  first token {milliseconds([sample.first for sample in samples])}; {memory}")
    return ledger.lost(samples) == 0 and {sample.text for sample in samples} == {samples[0].text}


async def peak_rate(server: QaServer, seats: int, tokens: int, seconds: float) -> float:
    """Requests a second with as many clients as the engine has seats."""
    end = time.perf_counter() + seconds

    async def client() -> int:
        served = 0
        while time.perf_counter() < end:
            served += (await ask(server, tokens)).status == 200
        return served

    began = time.perf_counter()
    return sum(await asyncio.gather(*(client() for _ in range(seats)))) / (time.perf_counter() - began)


async def overload(server: QaServer, seats: int, tokens: int, seconds: float) -> bool:
    peak = await peak_rate(server, seats, tokens, seconds)
    ledger, memory, draw = Ledger(server), Memory(server), random.Random(0)
    tasks: list[asyncio.Task[Sample]] = []
    began, due = time.perf_counter(), 0.0
    while due < seconds:
        await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(server, tokens, stream=len(tasks) % 2 == 0)))
        due += draw.expovariate(10 * peak)
    samples = await asyncio.gather(*tasks)
    served = [sample for sample in samples if sample.status == 200]
    refused = [sample.whole for sample in samples if sample.status == 503]
    goodput = len(served) / (time.perf_counter() - began)
    say(f"overload: {len(samples) / seconds:.0f} requests/s for {seconds:g} s where {peak:.1f} can be served")
    say(f"  served {goodput:.1f} a second, {goodput / peak:.0%} of what is served without a flood")
    say(f"  refused {len(refused)}: {milliseconds(refused)}; {memory}")
    late = sorted(refused)[int(len(refused) * 0.99)] > QUICK_REFUSAL if refused else True
    if late:
        say(f"  refusals are slower than {1000 * QUICK_REFUSAL:.0f} ms")
    return ledger.lost(samples) == 0 and goodput >= LEAST_GOODPUT * peak and not late


async def stalled(server: QaServer, count: int, tokens: int) -> bool:
    """The stalled are cut off by the server; until then somebody else is served again and again."""
    memory = Memory(server)
    watching = asyncio.create_task(memory.watch())
    began = time.perf_counter()
    clients = [stalled_client(server, tokens) for _ in range(count)]
    served: list[Sample] = []
    while not server.get("/metrics").body.decode().count(f'outcome="left",path="{PATH}",status="200"}} {count}.0'):
        served.append(await ask(server, 3))
    seconds = time.perf_counter() - began
    watching.cancel()
    for client in clients:
        client.close()
    say(f"stalled: {count} clients that never read were cut off within {seconds:.1f} s; {memory}")
    say(f"  meanwhile {len(served)} others were served: {milliseconds([sample.whole for sample in served])}")
    return all(sample.text == "All" for sample in served) and memory.most - memory.before < count * MOST_PER_STALLED


def stalled_client(server: QaServer, tokens: int) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.sendall(server.request(PATH, {"prompt": "Once", "max_tokens": tokens, "stream": True}))
    return client


Scene = Callable[[QaServer], Coroutine[Any, Any, bool]]


def scenes(options: argparse.Namespace) -> dict[str, tuple[dict[str, float], Scene]]:
    """Each with the settings of its server."""
    seats = {"max_num_seqs": options.seats, "max_num_queued_reqs": options.seats}
    return {
        "rate": ({}, lambda server: rate(server, options.seats, options.seconds)),
        "streams": (
            {"step_seconds": STEP_SECONDS, "characters": options.tokens},
            lambda server: streams(server, options.streams, options.tokens),
        ),
        "overload": (
            {"step_seconds": STEP_SECONDS, "characters": 20, **seats},
            lambda server: overload(server, options.seats, 20, options.seconds),
        ),
        "stalled": (
            {"characters": 10**5, "unread_seconds": 5.0},
            lambda server: stalled(server, options.stalled, 10**5),
        ),
    }


def start(options: argparse.Namespace, folder: Path, settings: dict[str, float]) -> AbstractContextManager[QaServer]:
    if options.model is None:
        return serve_fake(folder, **settings)
    flags = [(f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items() if "num" in name]
    return serve(options.model, folder, "--max-model-len", "1024", *chain.from_iterable(flags))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", default=["rate", "streams", "overload", "stalled"], metavar="SCENE")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a model instead of the scripted engine")
    parser.add_argument("--streams", type=int, default=1000, metavar="N", help="streams at once (default: 1000)")
    parser.add_argument("--tokens", type=int, default=100, metavar="N", help="tokens of each stream (default: 100)")
    parser.add_argument("--seats", type=int, default=32, metavar="N", help="requests that run at once (default: 32)")
    parser.add_argument("--seconds", type=float, default=15, metavar="X", help="length of the flood (default: 15)")
    parser.add_argument("--stalled", type=int, default=200, metavar="N", help="clients that never read (default: 200)")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    passed = True
    for name in options.scenes:
        settings, scene = scenes(options)[name]
        with tempfile.TemporaryDirectory() as folder, start(options, Path(folder), settings) as server:
            passed &= uvloop.run(scene(server))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
