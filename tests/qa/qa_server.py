"""`octavo serve` as a process of its own: started on a free port, asked over sockets, watched through /proc.

A `QaServer` knows what a healthy one looks like from outside (`unharmed`): the same processes, ready, the canary's
golden text, no KV block in use, no descriptor more than before, no stack trace in any answer or in the log.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 60  # seconds until a server that does not answer counts as hung: a bound, not an expectation
MOST_GROWTH = 5 << 20  # for a bad request
MOST_OF_MANY = 64 << 20  # for many connections or megabytes at once: what is free again has holes
BODY_LIMIT = 16 << 20
KEY = "sk-one-for-the-tests"
#: malloc gives back what is free, so that resident memory is what a process holds and not what it once held.
TIGHT_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
_WELCOME = re.compile(r"serves (?P<model>\S+) on http://127\.0\.0\.1:(?P<port>\d+)")
_TRACES = (b"Traceback", b'File "', b" object at 0x", str(ROOT).encode())


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer. `complete` is false where the connection ended before the answer did."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, after the shape that every refusal shares has been checked."""
        assert self.headers["content-type"] == "application/json", self
        assert self.headers["x-request-id"], self
        assert self.json.keys() == {"error"}, self
        error: dict[str, Any] = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}, self
        assert error["message"], self
        assert len(error["message"]) < 1000, self
        return error

    @property
    def text(self) -> str:
        """What was generated, of a whole answer."""
        choice = self.json["choices"][0]
        text: str = choice["text"] if "text" in choice else choice["message"]["content"]
        return text

    @property
    def events(self) -> list[Any]:
        """The JSON of a stream's events; `[DONE]` stays text."""
        data = [part.removeprefix(b"data: ") for part in self.body.split(b"\n\n") if part]
        return ["[DONE]" if part == b"[DONE]" else json.loads(part) for part in data]


def refused(reply: Reply, status: int = 400, param: str | None = None, code: str | None = None) -> Reply:
    """The reply, which must be a refusal of the caller's own making with this status, field and code."""
    error = reply.error
    assert reply.status == status, reply
    assert error["type"] == "invalid_request_error", reply
    assert (error["param"], error["code"]) == (param, code), reply
    return reply


class _Received:
    """What `HTTPResponse` needs of a socket, over bytes that have all arrived."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._raw)


def parse(raw: bytes) -> Reply:
    """The first answer in what a server sent; it must hold no trace of the server's insides."""
    assert raw.startswith(b"HTTP/1.1 "), raw[:200]
    response = HTTPResponse(_Received(raw))  # type: ignore[arg-type]
    response.begin()
    try:
        body, complete = response.read(), True
    except IncompleteRead as error:
        body, complete = error.partial, False
    except ValueError:  # a chunk's size that never came
        body, complete = raw.partition(b"\r\n\r\n")[2], False
    if not response.headers["content-type"].startswith("text/plain"):
        assert not [trace for trace in _TRACES if trace in body], body[:2000]
    return Reply(response.status, {name.lower(): value for name, value in response.headers.items()}, body, complete)


def until(condition: Callable[[], bool], what: str) -> None:
    """Ask until the answer is yes; what is asked takes its own time, so nothing sleeps."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        os.sched_yield()


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a family of processes holds."""

    rss: int
    descriptors: int
    threads: int


class QaServer:
    def __init__(self, process: subprocess.Popen[str], log: Path, key: str | None) -> None:
        self.process = process
        self.log = log
        self.key = key
        self.golden = ""
        self.stdout = ""
        self.model = "?"
        self.port = 0

    # ------------------------------------------------------------------ life

    def wait_ready(self) -> None:
        """Until the line that says so; raises AssertionError with the log if the process ends first."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.stdout += line
            if match := _WELCOME.search(line):
                self.model, self.port = match["model"], int(match["port"])
                return
        raise AssertionError(f"the server ended with {self.process.wait()}: {self.log.read_text()}")

    def warm_up(self) -> None:
        """Reach the memory that the largest bodies and a full cache need, and learn what the canary says."""
        self.golden = self.canary()
        self.complete("x", guided_choice=["a", "b"])  # loads the library that compiles grammars
        text = b"x" * (BODY_LIMIT - 100)
        too_much = b"%x\r\n" % BODY_LIMIT + b" " * BODY_LIMIT + b"\r\n1\r\n \r\n0\r\n\r\n"
        chunked = self.head("/tokenize", "content-type: application/json", "transfer-encoding: chunked") + b"\r\n"
        for rows in range(1, 33):  # a kernel's memory is kept by shape
            self.complete(["a"] * rows, max_tokens=2, n=2)
        for _ in range(2):
            self._crowd(64)
        for _ in range(3):
            self.complete("x" * 6000, max_tokens=50, n=4)
            self.complete([5] * 8000, max_tokens=192)  # the whole of the context
            self.chat("y" * 7900, max_tokens=192)
            self.complete(["a"] * 100)
            self.post("/v1/completions", b'{"model": "%b", "prompt": "%b"}' % (self.model.encode(), text))
            self.talk(chunked + too_much)
        for long in ("x" * 4_000_000, "a " * 1_000_000, "👩‍👩‍👧‍👦" * 100_000):
            with self.streaming():
                self.post("/tokenize", {"prompt": long})
                self.complete(long)
                self.chat(long)
        until(self.idle, "the warm-up never ended")

    def _crowd(self, size: int) -> None:
        """Many streams at once, half of whose clients leave."""
        connections = [self.connect() for _ in range(size)]
        for number, connection in enumerate(connections):
            body = {"prompt": f"{number}" * number, "max_tokens": 200, "stream": True, "ignore_eos": True}
            connection.sendall(self.request("/v1/completions", body))
        for number, connection in enumerate(connections):
            if number % 2:
                read_to_end(connection)
            connection.close()

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """End it and give its exit status; every process of it must be gone afterwards."""
        family = self.pids()
        if self.process.poll() is None:
            self.process.send_signal(by)
        status = self.process.wait(PATIENCE)
        until(lambda: not any(alive(pid) for pid in family), f"some of {family} outlived the server")
        return status

    # ------------------------------------------------------------------ asking

    def talk(self, *pieces: bytes, half_close: bool = False) -> bytes:
        """Send, then read until the server closes."""
        with self.connect() as connection:
            for piece in pieces:
                try:
                    connection.sendall(piece)
                except (BrokenPipeError, ConnectionResetError):
                    break  # refused before all was sent
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return read_to_end(connection)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def raw(self, *pieces: bytes) -> Reply:
        return parse(self.talk(*pieces))

    def head(self, path: str, *headers: str, method: str = "POST") -> bytes:
        """The lines before a body, less the one that says how long it is."""
        lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close", *headers]
        if self.key is not None:
            lines.append(f"authorization: Bearer {self.key}")
        return "\r\n".join([*lines, ""]).encode("latin-1")

    def request(self, path: str, body: dict[str, Any] | bytes) -> bytes:
        """A whole POST. A dict is completed with the model's name where it has none."""
        data = body if isinstance(body, bytes) else json.dumps({"model": self.model, **body}).encode()
        return self.head(path, "content-type: application/json", f"content-length: {len(data)}") + b"\r\n" + data

    def post(self, path: str, body: dict[str, Any] | bytes) -> Reply:
        return self.raw(self.request(path, body))

    def get(self, path: str, *headers: str, method: str = "GET") -> Reply:
        return self.raw(self.head(path, *headers, method=method) + b"\r\n")

    def chat(self, content: Any = "Hi", **fields: Any) -> Reply:
        return self.post(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": content}], "max_tokens": 8, **fields}
        )

    def complete(self, prompt: Any = "Once", **fields: Any) -> Reply:
        return self.post("/v1/completions", {"prompt": prompt, "max_tokens": 8, **fields})

    @contextmanager
    def streaming(self, prompt: str = "Once", **fields: Any) -> Iterator[socket.socket]:
        """A stream of completions that has begun; closed at the end, read or not."""
        body = {"prompt": prompt, "stream": True, "ignore_eos": True, "max_tokens": 4000, "temperature": 0, **fields}
        with self.connect() as connection:
            connection.sendall(self.request("/v1/completions", body))
            began = b""
            while b"data: " not in began:
                part = connection.recv(4096)
                assert part, began
                began += part
            yield connection

    # ------------------------------------------------------------------ watching

    def canary(self) -> str:
        reply = self.complete("A canary sings", max_tokens=24, temperature=0)
        assert reply.status == 200, reply
        return reply.text

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = re.findall(rf"^vllm:{name}(?:{{[^}}]*}})? (\S+)$", self.get("/metrics").body.decode(), re.MULTILINE)
        return sum(float(value) for value in lines)

    def idle(self) -> bool:
        names = ("kv_cache_usage_perc", "num_requests_running", "num_requests_waiting")
        return all(self.metric(name) == 0.0 for name in names) and self.balanced()

    def balanced(self) -> bool:
        """The ledger: every request that was accepted has ended in exactly one way."""
        accepted, *ended = (
            self.metric(f"requests_{what}_total") for what in ("accepted", "completed", "errored", "cancelled")
        )
        return accepted == sum(ended)

    def pids(self) -> list[int]:
        """Without those that try grammars, which come and go."""
        all_pids = [self.process.pid, *descendants(self.process.pid)]
        return [pid for pid in all_pids if b"grammar_trial" not in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def footprint(self) -> Footprint:
        pids = self.pids()
        return Footprint(
            rss=sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGESIZE"),
            descriptors=sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
            threads=sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
        )

    @contextmanager
    def unharmed(self, most_growth: int = MOST_GROWTH) -> Iterator[None]:
        """Whatever happens inside, afterwards the server is as it was."""
        pids, before, logged = self.pids(), self.footprint(), self.log.stat().st_size
        yield
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        assert self.get("/ready").status == 200
        assert self.canary() == self.golden
        until(self.idle, "KV blocks never came back")
        until(lambda: self.footprint().descriptors <= before.descriptors, "descriptors stayed open")
        assert self.pids() == pids, "a process died or was born"
        grown = self.footprint().rss - before.rss
        assert grown < most_growth, f"{grown / 2**20:.1f} MiB more than before"
        with self.log.open() as log:
            log.seek(logged)
            written = log.read()
        assert "Traceback" not in written, written


def read_to_end(connection: socket.socket) -> bytes:
    received = bytearray()
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return bytes(received)


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return sorted(found)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def started(command: list[str], folder: Path, key: str | None = None, **environment: str) -> Iterator[QaServer]:
    """A server process whose log is a file; killed with all its children if the test leaves it running."""
    log = folder / "server.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **TIGHT_MALLOC, **environment},
        )
    server = QaServer(process, log, key)
    try:
        yield server
    finally:
        family = server.pids() if process.poll() is None else []
        for pid in family:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def serve_command(model: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "octavo.cli", "serve", str(model), "--port", "0", *flags]


@contextmanager
def serve(model: Path, folder: Path, *flags: str, key: str | None = None, **environment: str) -> Iterator[QaServer]:
    """`octavo serve`, ready; ends with SIGTERM and must then exit with 0."""
    with started(serve_command(model, *flags), folder, key, **environment) as server:
        server.wait_ready()
        yield server
        assert server.stop() == 0


@contextmanager
def serve_fake(folder: Path, **options: float) -> Iterator[QaServer]:
    """The HTTP server with a scripted engine, ready. Options: `step_seconds` and the fields of `Limits`."""
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, str(Path(__file__).parent / "fake_octavo.py"), *flags]
    with started(command, folder) as server:
        server.wait_ready()
        yield server
        assert server.stop() == 0
