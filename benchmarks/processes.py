"""Starting what is measured, talking to it and weighing it. Knows nothing of what the numbers mean."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MIB = 2**20
PATIENCE_S = 300.0
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}


def resident_mib(pid: int) -> float | None:
    """Resident memory of a process and all its descendants; None where there is no /proc."""
    if not Path("/proc/self/statm").exists():
        return None
    children: dict[int, list[int]] = {}
    pages: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            pages[int(folder.name)] = int((folder / "statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        children.setdefault(parent, []).append(int(folder.name))
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return sum(pages.get(member, 0) for member in family) * os.sysconf("SC_PAGE_SIZE") / MIB


class Process:
    """A child process with its standard error kept for the case that it fails."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in stop()
        self.started = time.perf_counter()
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env={**os.environ, **QUIET}
        )

    def fail(self, why: str) -> RuntimeError:
        self.errors.seek(0)
        return RuntimeError(f"{' '.join(self.command)}: {why}\n{self.errors.read()[-4000:]}")

    def age(self) -> float:
        """Seconds since the process was started."""
        return time.perf_counter() - self.started

    def memory_mib(self) -> float | None:
        return resident_mib(self.child.pid)

    def stop(self) -> None:
        self.child.terminate()
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        for stream in (self.child.stdin, self.child.stdout, self.errors):
            assert stream is not None
            stream.close()


class Contestant(Process):
    """`contestant.py` in a process: one JSON line out, one JSON line in."""

    def __init__(self, name: str, model: Path) -> None:
        super().__init__([sys.executable, str(Path(__file__).with_name("contestant.py")), name, str(model)])
        self.name = name

    def read(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        if not select.select([self.child.stdout], [], [], PATIENCE_S)[0]:
            raise self.fail(f"no answer within {PATIENCE_S:.0f} s")
        line = self.child.stdout.readline()
        if not line:
            raise self.fail("ended")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def ask(self, **job: Any) -> dict[str, Any]:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(job).encode() + b"\n")
        self.child.stdin.flush()
        return self.read()


class Server(Process):
    """`octavo serve` on a free port."""

    def __init__(self, model: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        octavo = str(Path(sys.executable).with_name("octavo"))
        super().__init__(
            [octavo, "serve", str(model), "--dtype", "bfloat16", "--port", str(self.port), "--log-level", "error"]
        )

    def wait_ready(self) -> None:
        while self.age() < PATIENCE_S:
            if self.child.poll() is not None:
                raise self.fail("ended")
            try:
                if self.request("GET", "/ready").status == http.client.OK:
                    return
            except ConnectionRefusedError:
                pass
            time.sleep(0.01)
        raise self.fail(f"not ready within {PATIENCE_S:.0f} s")

    def first_token(self, prompt: list[int]) -> None:
        model = json.loads(self.request("GET", "/v1/models").read())["data"][0]["id"]
        body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": True}
        response = self.request("POST", "/v1/completions", body)
        line = response.readline()
        if not line.startswith(b"data: {"):
            raise self.fail(f"answered {response.status} {line.decode()}")

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        return connection.getresponse()
