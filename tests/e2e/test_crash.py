"""The real server with the real model while its processes are killed and stopped: no client sees it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ASKED: list[dict[str, Any]] = [
    {"prompt": "The sea is", "temperature": 0},
    {"prompt": "Once upon a time", "temperature": 0, "repetition_penalty": 1.3, "stop": ["zebra"]},
    {"prompt": "Count: 1 2 3", "temperature": 0.9, "seed": 3, "n": 2, "logprobs": 2},
    {"prompt": "As JSON: ", "temperature": 1.0, "seed": 5, "n": 2, "guided_regex": r'(\{"[a-z ]{9,}": [0-9]+\})+'},
    {"prompt": "The capital of France", "temperature": 1.2, "seed": 4, "top_p": 0.8, "min_tokens": 40},
]
LEAST_EVENTS = 3  # that every stream has received when something happens


class Server:
    """`octavo serve` with a core process and a worker process."""

    def __init__(self, log: Path) -> None:
        self.log = log
        flags = ("--port", "0", "--max-model-len", "512", "--distributed-executor-backend", "mp", "--hang-timeout", "2")
        with log.open("w") as stderr:
            command = [sys.executable, "-m", "octavo.cli", "serve", *flags]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        welcome = re.search(r"serves (\S+) on (http://\S+)", self.process.stdout.readline())
        assert welcome, self.log.read_text()
        self.model, self.url = welcome.groups()

    @property
    def core(self) -> int:
        return child_of(self.process.pid)

    @property
    def worker(self) -> int:
        return child_of(self.core)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return sum(
            float(value) for value in re.findall(rf"^vllm:{name}_total(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        )

    def stream(self, asked: dict[str, Any], events: list[Any], on_event: Callable[[], None]) -> None:
        body = {"model": self.model, "max_tokens": 48, "ignore_eos": True, "stream": True, **asked}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=None) as reply:
            for line in reply.iter_lines():
                if line:
                    data = line.removeprefix("data: ")
                    events.append(data if data == "[DONE]" else json.loads(data)["choices"])
                    on_event()

    def streams(self, fault: Callable[[], None] | None = None) -> list[list[Any]]:
        """The choices of every event of all streams at once; the fault happens while all of them run."""
        heard: list[list[Any]] = [[] for _ in ASKED]
        begun = threading.Event()

        def note() -> None:
            if min(map(len, heard)) >= LEAST_EVENTS:
                begun.set()

        threads = [
            threading.Thread(target=self.stream, args=(asked, events, note))
            for asked, events in zip(ASKED, heard, strict=True)
        ]
        for thread in threads:
            thread.start()
        begun.wait()
        if fault is not None:
            fault()
        for thread in threads:
            thread.join()
        return heard


def said(events: list[Any]) -> dict[int, dict[str, Any]]:
    """Each choice in one piece: where the events of a stream are cut depends on how fast it is read."""
    assert events[-1] == "[DONE]"
    whole: dict[int, dict[str, Any]] = {}
    for choice in (choice for choices in events[:-1] for choice in choices):
        so_far = whole.setdefault(choice["index"], {"text": "", "logprobs": {}})
        so_far["text"] += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            so_far["logprobs"].setdefault(name, []).extend(values)
        assert "finish_reason" not in so_far, "something was said after the end"
        if choice["finish_reason"] is not None:
            so_far["finish_reason"] = choice["finish_reason"]
    return whole


def child_of(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server") / "log")
    with server.process:
        try:
            server.wait_ready()
            yield server
        finally:
            server.process.kill()


@pytest.fixture(scope="module")
def undisturbed(server) -> list[dict[int, dict[str, Any]]]:
    return [said(events) for events in server.streams()]


@pytest.mark.parametrize(
    ("victim", "by"),
    [("core", signal.SIGKILL), ("core", signal.SIGSEGV), ("worker", signal.SIGKILL), ("worker", signal.SIGSTOP)],
)
def test_streams_go_on_where_they_were(server, undisturbed, victim, by):
    restarts = server.metric("core_restarts")
    family = [server.core, server.worker]
    ready = []

    def fault() -> None:
        os.kill(getattr(server, victim), by)
        while not ready or ready[-1] == 200:
            ready.append(httpx.get(f"{server.url}/ready").status_code)

    assert [said(events) for events in server.streams(fault)] == undisturbed
    assert set(ready) <= {200, 503}
    assert httpx.get(f"{server.url}/ready").status_code == 200
    assert server.metric("core_restarts") == restarts + 1
    for pid in family:
        wait_gone(pid)
    ends = ("completed", "errored", "cancelled")
    assert server.metric("requests_accepted") == sum(server.metric(f"requests_{end}") for end in ends)
    assert server.metric("requests_errored") == 0
    assert "Traceback" not in server.log.read_text()


def wait_gone(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], 60)[0], f"process {pid} stayed"
    finally:
        os.close(handle)


def test_no_process_outlives_its_parent_not_even_a_stopped_one(server):
    """The last test of this server."""
    family = [server.core, server.worker]
    os.kill(server.worker, signal.SIGSTOP)
    server.process.kill()
    server.process.wait()
    for pid in family:
        wait_gone(pid)
