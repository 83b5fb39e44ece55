"""`batch_kills.py [--lines 10000] [--kills 5]`: SIGKILL of the server within a batch loses and doubles no line.

A server with a scripted engine (or a tiny model, with --model) is killed at random moments, all its processes at once,
and started again on the same folder, until the batch is over. Then the output must hold each line exactly once, each
with the answer to its own question. Exits with 1 when it does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from qa_server import QaServer, Reply, alive, serve_command, started, until
from tiny_model import write_tiny_model

URL = "/v1/completions"
BOUNDARY = "b0undary"


def prompt(number: int) -> str:
    return f"Question {number}:"


def upload(server: QaServer, content: bytes) -> str:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{BOUNDARY}\r\n'
    head += 'Content-Disposition: form-data; name="file"; filename="questions.jsonl"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    kind, length = f"content-type: multipart/form-data; boundary={BOUNDARY}", f"content-length: {len(body)}"
    return str(ok(server.raw(server.head("/v1/files", kind, length) + b"\r\n" + body))["id"])


def ok(reply: Reply) -> Any:
    assert reply.status == 200, reply
    return reply.json


def questions(model: str, lines: int, max_tokens: int) -> bytes:
    bodies = (
        {"model": model, "prompt": prompt(number), "max_tokens": max_tokens, "seed": 1} for number in range(lines)
    )
    wrapped = (
        {"custom_id": f"q-{number}", "method": "POST", "url": URL, "body": body} for number, body in enumerate(bodies)
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in wrapped)


def kill(server: QaServer) -> None:
    family = server.pids()
    for pid in family:
        os.kill(pid, signal.SIGKILL)
    server.process.wait()
    until(lambda: not any(alive(pid) for pid in family), "a killed process lives on")


class Ledger:
    """A batch seen from outside, over the lives of several servers."""

    def __init__(self, command: list[str], folder: Path, lines: int, max_tokens: int) -> None:
        self._command = command
        self._folder = folder
        self._lines = lines
        self._max_tokens = max_tokens
        self._batch = ""
        self.kills = 0

    def life(self) -> AbstractContextManager[QaServer]:
        return started(self._command, self._folder)

    def begin(self, server: QaServer) -> None:
        if self._batch:
            return
        file = upload(server, questions(server.model, self._lines, self._max_tokens))
        body = {"input_file_id": file, "endpoint": URL, "completion_window": "24h"}
        self._batch = ok(server.post("/v1/batches", body))["id"]

    def state(self, server: QaServer) -> Any:
        return ok(server.get(f"/v1/batches/{self._batch}"))

    def answered(self, server: QaServer) -> int:
        return int(self.state(server)["request_counts"]["completed"])

    def run_until(self, count: int) -> None:
        """A life that ends by SIGKILL once so many lines are answered."""
        with self.life() as server:
            server.wait_ready()
            self.begin(server)
            before = self.answered(server)
            while (now := self.answered(server)) < count:
                time.sleep(0.002)
            kill(server)
            self.kills += 1
            say(f"kill {self.kills}: {before} lines were answered at the start, {now} at the end")

    def finish(self) -> list[str]:
        """A last life, to the end of the batch; what is wrong with its answers."""
        with self.life() as server:
            server.wait_ready()
            self.begin(server)
            while (state := self.state(server))["status"] in ("validating", "in_progress", "finalizing"):
                time.sleep(0.01)
            content = server.get(f"/v1/files/{state['output_file_id']}/content").body
            direct = {
                number: ok(server.complete(prompt(number), max_tokens=self._max_tokens, seed=1))["choices"]
                for number in random.sample(range(self._lines), min(20, self._lines))
            }
            assert server.stop() == 0
        return list(self._wrong(state, [json.loads(line) for line in content.splitlines()], direct))

    def _wrong(self, state: Any, answers: list[Any], direct: dict[int, Any]) -> list[str]:
        wrong = []
        counts = {"total": self._lines, "completed": self._lines, "failed": 0}
        if state["status"] != "completed" or state["request_counts"] != counts:
            wrong.append(f"the batch says {state}")
        if [answer["custom_id"] for answer in answers] != [f"q-{number}" for number in range(self._lines)]:
            wrong.append(f"{len(answers)} answers, not each line once and in order")
            return wrong
        for number, choices in direct.items():
            if answers[number]["response"]["body"]["choices"] != choices:
                wrong.append(f"line {number} has the answer of another")
        return wrong


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def command(model: Path | None, data: Path) -> list[str]:
    flags = ["--data-dir", str(data)]
    if model is None:
        return [sys.executable, str(Path(__file__).parent / "fake_octavo.py"), *flags]
    return serve_command(model, *flags, "--dtype", "float32", "--max-model-len", "256")


def storm(folder: Path, lines: int, kills: int, model: Path | None = None, max_tokens: int = 4) -> list[str]:
    """What was wrong in the end."""
    ledger = Ledger(command(model, folder / "data"), folder, lines, max_tokens)
    for moment in sorted(random.sample(range(lines // 20, lines - lines // 20), kills)):
        ledger.run_until(moment)
    return ledger.finish()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--model", action="store_true", help="a tiny model instead of a scripted engine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_tiny_model(folder) if options.model else None
        began = time.monotonic()
        wrong = storm(folder, options.lines, options.kills, model)
    say(f"{options.lines} lines, {options.kills} kills, {time.monotonic() - began:.0f} s: {wrong or 'each line once'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
