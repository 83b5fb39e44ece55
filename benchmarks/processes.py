"""Starting what is measured, talking to it and weighing it. Knows nothing of what the numbers mean."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

MIB = 2**20
PATIENCE_S = 400.0  # with a start, or with one measurement
PR_SET_CHILD_SUBREAPER = 36
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    members = [pid]
    for member in members:
        members += children.get(member, [])
    return members


def memory_mib(pid: int, kind: str) -> float | None:
    """Memory of a process and all its descendants; None where /proc does not tell.

    `kind` is Rss, where a page counts in each process that maps it, or Pss, where processes share its weight.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    kib = 0
    for member in family(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
            kib += sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))
    return kib * 1024 / MIB


def adopt_orphans() -> None:
    """From now on a descendant that loses its parent becomes our child, and its time ours, where the system can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Process:
    """A child process with its standard error kept for the case that it fails.

    One that `talks` has pipes to and from us; else its output is kept with the errors.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, *, talks: bool = True
    ) -> None:
        self.command = command
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in stop()
        self.started = time.perf_counter()
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else self.errors,
            stderr=self.errors,
            env={**os.environ, **QUIET, **(environment or {})},
            start_new_session=True,
        )

    def fail(self, why: str) -> RuntimeError:
        self.errors.seek(0)
        return RuntimeError(f"{why}\n{' '.join(self.command)}\n{self.errors.read()[-4000:]}")

    def age(self) -> float:
        """Seconds since the process was started."""
        return time.perf_counter() - self.started

    def memory_mib(self, kind: str = "Rss") -> float | None:
        return memory_mib(self.child.pid, kind)

    def signal(self, number: signal.Signals) -> None:
        """To the child and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, number)

    def stop(self) -> None:
        self.child.terminate()
        self.signal(signal.SIGCONT)
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.signal(signal.SIGKILL)  # its own children, had it forgotten them
        with suppress(ChildProcessError):  # those that became ours
            while os.waitpid(-self.child.pid, 0):
                pass
        for stream in (self.child.stdin, self.child.stdout, self.errors):
            if stream is not None:
                stream.close()


class Contestant(Process):
    """`contestant.py` in a process: one JSON line out, one JSON line in; halted in between.

    An engine that polls while it waits would take its share of a core from whoever's turn it is.
    """

    def __init__(
        self,
        name: str,
        model: Path,
        dtype: str = "bfloat16",
        python: Path = Path(sys.executable),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        script = Path(__file__).with_name("contestant.py")
        # -P: our files beside the script must not stand for packages that an engine looks for
        super().__init__([str(python), "-P", str(script), name, str(model), "--dtype", dtype], environment)
        self.name = name

    def read(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        if not select.select([self.child.stdout], [], [], PATIENCE_S)[0]:
            raise self.fail(f"no answer within {PATIENCE_S:.0f} s")
        line = self.child.stdout.readline()
        if not line:
            raise self.fail(f"it ended with {self.child.wait(20)}")
        self.signal(signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        return reply

    def ask(self, **job: Any) -> dict[str, Any]:
        assert self.child.stdin is not None
        self.signal(signal.SIGCONT)
        self.child.stdin.write(json.dumps(job).encode() + b"\n")
        self.child.stdin.flush()
        return self.read()


def octavo_serve(model: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "octavo.cli", "serve", str(model), "--port", "{port}", "--log-level", "error", *flags]


class Server(Process):
    """An HTTP server on a free port, which stands for {port} in its command."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        super().__init__([part.replace("{port}", str(self.port)) for part in command], environment, talks=False)

    def wait_ready(self) -> None:
        while self.age() < PATIENCE_S:
            if self.child.poll() is not None:
                raise self.fail(f"it ended with {self.child.wait(20)}")
            try:
                if self.request("GET", "/health").status == http.client.OK:
                    return
            except ConnectionError:
                pass
            time.sleep(0.01)
        raise self.fail(f"not ready within {PATIENCE_S:.0f} s")

    def model(self) -> str:
        name: str = json.loads(self.request("GET", "/v1/models").read())["data"][0]["id"]
        return name

    def first_token(self, prompt: list[int]) -> None:
        body = {"model": self.model(), "prompt": prompt, "max_tokens": 8, "temperature": 0, "stream": True}
        response = self.request("POST", "/v1/completions", body)
        line = response.readline()
        if not line.startswith(b"data: {"):
            raise self.fail(f"answered {response.status} {line.decode()}")

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        return connection.getresponse()
