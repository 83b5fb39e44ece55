"""Copies in the layout of the hub's cache, and a hub on this machine, for tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
from local_http import serving
from safetensors.numpy import save

COMMIT = "0123456789" * 4

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "max_position_embeddings": 128,
}
WEIGHTS = save({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)})


def hub_copy(cache: Path, repo: str, files: Mapping[str, bytes], commit: str = COMMIT) -> Path:
    """A snapshot whose files are links to blobs, as the hub's library leaves them."""
    base = cache / f"models--{repo.replace('/', '--')}"
    snapshot = base / "snapshots" / commit
    for folder in (base / "refs", base / "blobs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (base / "refs" / "main").write_text(commit)
    for name, content in files.items():
        blob = base / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def safetensors_files() -> dict[str, bytes]:
    return {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"}


@contextmanager
def hub_server(repo: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """The address of a hub with one repository. As much of the protocol as its library asks for a snapshot."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            prefix = f"/{repo}/resolve/{COMMIT}/"
            if path.startswith(f"/api/models/{repo}/tree/"):
                entries = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                self.answer(json.dumps(entries).encode())
            elif path.startswith(f"/api/models/{repo}"):
                siblings = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}).encode())
            elif path.startswith(prefix) and path.removeprefix(prefix) in files:
                self.answer(files[path.removeprefix(prefix)])
            else:
                self.answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

        def answer(self, content: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            etag = hashlib.sha1(content).hexdigest()
            for name, value in {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    with serving(Handler) as url:
        yield url
