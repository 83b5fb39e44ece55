"""`octavo serve --config` as a process of its own, and callers who never stop: what becomes of each answer is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from gguf_files import write_gguf
from tiny_model import METADATA, tensors

PATIENCE = 240  # seconds until something that does not happen counts as missing: a bound, not an expectation
PROMPT = {"prompt": "Once", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
SETTINGS = 'kv_cache_memory = "8MiB"\nmax_model_len = 2048\nhang_timeout = 300\nnum_threads = 1\n'


def write_model(path: Path, seed: int) -> Path:
    """A tiny model that says something else for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, metadata=METADATA, tensors=tensors(seed))
    return path


class ManyModels:
    def __init__(self, folder: Path, declaration: str, *flags: str) -> None:
        self.file = folder / "octavo.toml"
        self.log = folder / "log"
        self.declare(declaration)
        command = [sys.executable, "-m", "octavo.cli", "serve", "--config", str(self.file), "--port", "0", *flags]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        welcome = self.process.stdout.readline()
        found = re.search(r"on (http://127\.0\.0\.1:\d+)", welcome)
        assert found is not None, self.log.read_text()
        self.url = found[1]
        self.web = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def declare(self, declaration: str) -> None:
        """In one step, as an editor should."""
        draft = self.file.with_suffix(".new")
        draft.write_text(declaration)
        draft.replace(self.file)

    def ask(self, model: str, **fields: Any) -> str:
        reply = self.web.post("/v1/completions", json={"model": model, **PROMPT, **fields})
        assert reply.status_code == 200, reply.text
        text: str = reply.json()["choices"][0]["text"]
        return text

    def models(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Versions by model and number; of one that is loaded twice, the declared one."""
        found = self.web.get("/v1/admin/models").json()["data"]
        return {
            model["name"]: {each["version"]: each for each in model["versions"] if not each["retired"]}
            for model in found
        }

    def states(self, model: str) -> dict[int, str]:
        return {number: version["state"] for number, version in self.models()[model].items()}

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Ask the server until it is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.log.read_text()[-4000:]}"
            time.sleep(0.05)

    def said(self, line: str) -> int:
        return self.log.read_text().count(line)

    def cores(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return len(children)

    def stop(self) -> int:
        self.web.close()
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def many_models(folder: Path, declaration: str, *flags: str) -> Iterator[ManyModels]:
    server = ManyModels(folder, declaration, *flags)
    try:
        yield server
        assert server.stop() == 0
        log = server.log.read_text()
        assert "Traceback" not in log, log[-4000:]
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        if server.process.stdout is not None:
            server.process.stdout.close()


class Callers:
    """So many ask one model again and again, half of them for streams."""

    def __init__(self, server: ManyModels, model: str, count: int) -> None:
        self.texts: list[str] = []
        self.failures: list[str] = []
        self._server = server
        self._model = model
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(bool(place % 2),)) for place in range(count)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a caller is still waiting for its answer"

    def _call(self, stream: bool) -> None:
        with httpx.Client(base_url=self._server.url, timeout=PATIENCE) as web:
            while not self._stop.is_set():
                try:
                    self.texts.append(self._streamed(web) if stream else self._whole(web))
                except (AssertionError, httpx.HTTPError, KeyError) as error:
                    self.failures.append(repr(error))

    def _whole(self, web: httpx.Client) -> str:
        reply = web.post("/v1/completions", json={"model": self._model, **PROMPT})
        assert reply.status_code == 200, reply.text
        text: str = reply.json()["choices"][0]["text"]
        return text

    def _streamed(self, web: httpx.Client) -> str:
        text = ""
        with web.stream("POST", "/v1/completions", json={"model": self._model, **PROMPT, "stream": True}) as reply:
            assert reply.status_code == 200, reply.read()
            events = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
        assert events[-1] == "[DONE]", events[-1]
        for event in events[:-1]:
            text += json.loads(event)["choices"][0]["text"]
        return text

    def until_heard(self, text: str) -> None:
        """Until an answer that begins from now on is this one."""
        before = len(self.texts)
        self._server.until(lambda: text in self.texts[before:] or bool(self.failures), f"nobody heard {text!r}")
