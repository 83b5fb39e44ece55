"""Run the official clients, unchanged, against a real octavo: `make clients`.

    make clients                                   all of them
    make clients ARGS="openai_python openai_node"  some

A server with SmolLM2-135M-Instruct (as stored, and in float32) and all-MiniLM-L6-v2 is started on a free port; each
client is a program beside this file that prints one JSON line a check. The table of what was seen is printed and
written to build/clients/results.md; the exit status is 1 if any check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.checkpoint import resolve
from octavo.config import ModelConfig

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRATCH = ROOT / "build" / "clients"
MODEL, FLOAT_MODEL, EMBEDDER = "SmolLM2-135M-Instruct", "SmolLM2-135M-float32", "all-MiniLM-L6-v2"
PATIENCE_S = 3600
_WELCOME = re.compile(r"on (?P<url>http://127\.0\.0\.1:\d+)")
DECLARED = f"""\
[models.{MODEL}]
source = "{MODEL}"
preload = true

[models.{FLOAT_MODEL}]
source = "{MODEL}"
dtype = "float32"

[models.{EMBEDDER}]
source = "{EMBEDDER}"
"""


@dataclass(frozen=True)
class Client:
    """A client's program: what runs it, and what it is told beside the server's address."""

    package: str
    command: tuple[str, ...]
    arguments: tuple[str, ...]


def clients(gguf: Path) -> dict[str, Client]:
    python = str(SCRATCH / "venv" / "bin" / "python")
    told = {
        "openai_python": ("openai", (MODEL, EMBEDDER)),
        "anthropic_python": ("anthropic", (MODEL,)),
        "ollama_python": ("ollama", (MODEL, EMBEDDER)),
        "langchain_openai_python": ("langchain-openai", (MODEL, EMBEDDER)),
        "pydantic_ai_python": ("pydantic-ai-slim", (MODEL,)),
        "lm_eval_python": ("lm_eval", (FLOAT_MODEL, str(gguf), str(SCRATCH))),
        "schemathesis_python": ("schemathesis", (str(SCRATCH), "30", MODEL, EMBEDDER)),
    }
    found = {
        name: Client(package, (python, str(HERE / f"{name}.py")), arguments)
        for name, (package, arguments) in told.items()
    }
    found["openai_node"] = Client(
        "openai (npm)", ("node", str(SCRATCH / "node" / "openai_node.mjs")), (MODEL, EMBEDDER)
    )
    return found


@contextmanager
def serving() -> Iterator[str]:
    """octavo with all three models; its address."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "octavo.toml"
        config.write_text(DECLARED)
        command = [
            sys.executable,
            "-m",
            "octavo.cli",
            "serve",
            "--config",
            str(config),
            "--port",
            "0",
            "--request-timeout",
            "120",
        ]
        command += ["--data-dir", str(Path(folder) / "data")]
        with (
            (SCRATCH / "server.log").open("w") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server,
        ):
            try:
                yield _address(server)
            finally:
                server.terminate()


def _address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if (found := _WELCOME.search(line)) is not None:
            return found["url"]
    raise SystemExit(f"the server did not start; see {SCRATCH / 'server.log'}")


def run(name: str, client: Client, url: str) -> list[dict[str, Any]]:
    """The checks of one client. A program that dies is a failed check too."""
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OPENAI_API_KEY": "none", "NO_PROXY": "127.0.0.1"}
    with (SCRATCH / f"{name}.log").open("w") as log:
        done = subprocess.run(
            [*client.command, url, *client.arguments],
            stdout=subprocess.PIPE, stderr=log, text=True, env=environment, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    checks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    if done.returncode != 0 or not checks:
        checks.append({"check": "the program runs to its end", "ok": False, "why": f"exit status {done.returncode}"})
    print(
        f"{name}: {sum(check['ok'] for check in checks)} of {len(checks)} in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    for check in checks:
        if not check["ok"]:
            print(f"  FAILED {check['check']}: {check['why']}", flush=True)
    return checks


def version(client: Client) -> str:
    if client.command[0] == "node":
        package = json.loads((SCRATCH / "node" / "node_modules" / "openai" / "package.json").read_text())
        return str(package["version"])
    code = f"from importlib.metadata import version; print(version({client.package!r}))"
    return subprocess.run([client.command[0], "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CLIENT")
    names = parser.parse_args().names
    gguf = resolve(ModelConfig()).path
    every = clients(gguf)
    if unknown := set(names) - every.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    rows, failed = ["| client | checks | seen |", "| --- | --: | --- |"], 0
    with serving() as url:
        for name in names or every:
            checks = run(name, every[name], url)
            passed = sum(check["ok"] for check in checks)
            failed += len(checks) - passed
            seen = "; ".join(check["check"] + (f" ({check['note']})" if check.get("note") else "") for check in checks)
            rows.append(f"| `{every[name].package}` {version(every[name])} | {passed} of {len(checks)} | {seen} |")
    (SCRATCH / "results.md").write_text("\n".join(rows) + "\n")
    print("\n".join(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
