"""`octavo serve` with a scripted engine: what is printed, and with which status the server ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, chat
from fake_server import run

from octavo.api import keys, serving
from octavo.api.server import bind, bind_admin
from octavo.api.tenants import Share
from octavo.cli.main import main
from octavo.config import EngineConfig, ServerConfig
from octavo.errors import CheckpointError, EngineDead, OctavoError
from octavo.metrics import Metrics
from octavo.repository.declared import of_flags


class StartedEngine(FakeEngine):
    """Loads when told to, dies when told to."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.metrics = Metrics("fake-model", longest=100)
        self.ready = False
        self.loaded = asyncio.Event()
        self.ended: asyncio.Future[OctavoError] = asyncio.get_running_loop().create_future()
        self.failure: OctavoError | None = None
        self.was_shut_down = False

    async def wait_ready(self) -> None:
        await self.loaded.wait()
        if self.failure is not None:
            raise self.failure
        self.ready = True

    async def wait_dead(self) -> OctavoError:
        return await self.ended

    async def shutdown(self) -> None:
        self.was_shut_down = True


def served(
    monkeypatch: pytest.MonkeyPatch,
    scenario: Callable[[StartedEngine, httpx.AsyncClient], Awaitable[None]],
    **options: Any,
) -> tuple[int, StartedEngine]:
    """Run `serve` beside a scenario; its exit status."""
    engines: list[StartedEngine] = []
    result: list[int] = []

    async def both() -> None:
        engine = StartedEngine()
        engines.append(engine)

        class OneEngine:
            async def start(self, config: EngineConfig, version: int) -> StartedEngine:
                return engine

            async def measure(self, config: EngineConfig) -> int:
                return 0

        declared = of_flags(EngineConfig.of(served_model_name="fake-model"))
        config = ServerConfig(port=0, **options)
        listener = bind(config)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url) as web:
            server = asyncio.create_task(serving.serve(declared, config, listener, bind_admin(config), OneEngine()))
            await scenario(engine, web)
            result.append(await server)

    run(both)
    return result[0], engines[0]


async def until_ready(web: httpx.AsyncClient) -> None:
    while (await web.get("/ready")).status_code != 200:
        await asyncio.sleep(0.01)


def test_live_at_once_ready_when_loaded_gone_with_a_signal(monkeypatch, capsys) -> None:
    async def scenario(engine: StartedEngine, web: httpx.AsyncClient) -> None:
        assert (await web.get("/live")).status_code == 200
        refused = await web.post("/v1/chat/completions", json=chat())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert capsys.readouterr().out == ""
        engine.loaded.set()
        await until_ready(web)
        assert (await web.post("/v1/chat/completions", json=chat())).status_code == 200
        os.kill(os.getpid(), signal.SIGTERM)

    status, engine = served(monkeypatch, scenario)
    assert status == 0
    assert engine.was_shut_down
    out = capsys.readouterr().out
    assert "serves fake-model on http://127.0.0.1:" in out
    assert "curl http://127.0.0.1:" in out
    assert "/v1/chat/completions" in out
    assert "Authorization" not in out


def test_the_welcome_tells_of_keys_but_never_which(monkeypatch, capsys) -> None:
    async def scenario(engine: StartedEngine, web: httpx.AsyncClient) -> None:
        engine.tokenizer.chat_template = None
        engine.loaded.set()
        await until_ready(web)
        os.kill(os.getpid(), signal.SIGINT)

    assert served(monkeypatch, scenario, api_key=("sesame",))[0] == 0
    out, err = capsys.readouterr()
    assert "Authorization: Bearer $KEY" in out
    assert "/v1/completions" in out
    assert "sesame" not in out + err


def test_a_second_signal_does_not_wait(monkeypatch) -> None:
    async def scenario(engine: StartedEngine, web: httpx.AsyncClient) -> None:
        engine.hang_after = 1
        engine.loaded.set()
        await until_ready(web)
        reply = asyncio.create_task(web.post("/v1/chat/completions", json=chat()))
        while not engine.running:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        while (refused := await web.get("/ready")).status_code == 200:
            await asyncio.sleep(0)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert not reply.done()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (await reply).status_code == 503

    status, engine = served(monkeypatch, scenario)
    assert status == 0
    assert engine.aborted


@pytest.mark.parametrize("loaded", [False, True])
def test_the_engines_end_is_the_servers(monkeypatch, capsys, loaded) -> None:
    async def scenario(engine: StartedEngine, web: httpx.AsyncClient) -> None:
        if loaded:
            engine.loaded.set()
            await until_ready(web)
            engine.ended.set_result(EngineDead("the engine process ended unexpectedly"))
        else:
            engine.failure = CheckpointError("config.json: no such file")
            engine.loaded.set()

    status, engine = served(monkeypatch, scenario)
    assert status == 1
    assert engine.was_shut_down
    reason = "the engine process ended unexpectedly" if loaded else "config.json: no such file"
    assert capsys.readouterr().err.endswith(f"octavo: {reason}\n")


def test_a_signal_while_loading_ends_the_server(monkeypatch) -> None:
    async def scenario(engine: StartedEngine, web: httpx.AsyncClient) -> None:
        await web.get("/live")
        os.kill(os.getpid(), signal.SIGTERM)

    status, engine = served(monkeypatch, scenario)
    assert status == 0
    assert engine.was_shut_down


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "./no/such/model",
            "octavo: './no/such/model': no such file or folder, and not the form of a hub id (org/name)\n",
        ),
        (
            "nosuchmodel",
            "octavo: 'nosuchmodel' is no file or folder here and none of octavo's own models (SmolLM2-135M-Instruct, "
            "gemma-3-270m, all-MiniLM-L6-v2); as a hub id: nosuchmodel is not on this machine and "
            "OCTAVO_OFFLINE=1 forbids asking the hub; check the network, or give a folder or .gguf file\n",
        ),
    ],
)
def test_a_model_that_is_not_there_is_one_line(model, message) -> None:
    command = [sys.executable, "-m", "octavo.cli", "serve", model, "--port", "0", "--log-level", "warning"]
    environment = {**os.environ, "OCTAVO_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


def test_a_taken_port_is_found_before_anything_is_loaded(capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "/no/such/model", "--port", str(port)]) == 1
    assert (
        capsys.readouterr().err == f"octavo: port {port} on 127.0.0.1 is already in use; choose another with --port\n"
    )


def test_tls_files_are_tried_before_anything_is_loaded(tmp_path, capsys) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    junk = str(tmp_path / "junk.pem")
    assert main(["serve", "/no/such/model", "--port", "0", "--ssl-certfile", junk, "--ssl-keyfile", junk]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"octavo: --ssl-certfile {junk} and --ssl-keyfile {junk} are no certificate chain")
    assert error.count("\n") == 1


def test_throughput_is_logged_while_there_is_traffic(monkeypatch, caplog) -> None:
    monkeypatch.setattr(serving, "_THROUGHPUT_SECONDS", 0.001)
    caplog.set_level("INFO", logger="octavo")

    async def scenario(engine: StartedEngine, web: httpx.AsyncClient) -> None:
        engine.loaded.set()
        await until_ready(web)
        assert "throughput" not in caplog.text
        engine.metrics.generation_tokens.inc(5)
        while "Avg generation throughput: " not in caplog.text:
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)

    assert served(monkeypatch, scenario)[0] == 0


def test_the_address_is_logged_at_once_and_the_model_when_it_is_ready(monkeypatch, caplog) -> None:
    caplog.set_level("INFO", logger="octavo")

    async def scenario(engine: StartedEngine, web: httpx.AsyncClient) -> None:
        await web.get("/live")
        assert f"listens on {str(web.base_url).rstrip('/')}; loading the default model" in caplog.text
        assert "is ready" not in caplog.text
        engine.loaded.set()
        await until_ready(web)
        assert "fake-model is ready" in caplog.text
        os.kill(os.getpid(), signal.SIGTERM)

    assert served(monkeypatch, scenario)[0] == 0


def test_the_admin_port_is_announced(monkeypatch, caplog) -> None:
    caplog.set_level("INFO", logger="octavo")

    async def scenario(engine: StartedEngine, web: httpx.AsyncClient) -> None:
        engine.loaded.set()
        await until_ready(web)
        found = re.search(r"the admin port is (http://127\.0\.0\.1:\d+)", caplog.text)
        assert found is not None
        assert (await web.get(f"{found[1]}/metrics")).status_code == 200
        here = await web.get("/metrics")
        assert here.status_code == 404
        assert "answered on the admin port" in here.json()["error"]["message"]
        os.kill(os.getpid(), signal.SIGTERM)

    assert served(monkeypatch, scenario, admin_port=0)[0] == 0


def test_a_mistake_in_the_file_of_keys_is_logged_though_nobody_asks(monkeypatch, caplog, tmp_path) -> None:
    monkeypatch.setattr(keys, "_LOOK_SECONDS", 0.001)
    path = tmp_path / "keys.toml"
    keys.issue(path, "alice", "user", Share())

    async def scenario(engine: StartedEngine, web: httpx.AsyncClient) -> None:
        engine.loaded.set()
        await until_ready(web)
        path.write_text("nonsense [")
        while "the keys stay as they were" not in caplog.text:
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)

    assert served(monkeypatch, scenario, api_key_file=str(path))[0] == 0


@pytest.mark.parametrize("key", ["", " "])
def test_an_empty_key_is_refused(capsys, key) -> None:
    assert main(["serve", "/no/such/model", "--port", "0", "--api-key", key]) == 1
    error = capsys.readouterr().err
    assert error.startswith("octavo: api_key must not be empty")
    assert error.count("\n") == 1


def test_a_failure_of_the_throughput_line_is_logged_and_ends_nothing(monkeypatch, caplog) -> None:
    monkeypatch.setattr(serving, "_THROUGHPUT_SECONDS", 0.001)

    def fail(self: object, now: float) -> None:
        raise ZeroDivisionError("no seconds")

    monkeypatch.setattr(serving.Throughput, "line", fail)

    async def scenario(engine: StartedEngine, web: httpx.AsyncClient) -> None:
        engine.loaded.set()
        await until_ready(web)
        for _ in range(1000):
            if "ZeroDivisionError: no seconds" in caplog.text:
                break
            await asyncio.sleep(0.001)
        assert "ZeroDivisionError: no seconds" in caplog.text
        assert (await web.get("/ready")).status_code == 200
        os.kill(os.getpid(), signal.SIGTERM)

    assert served(monkeypatch, scenario)[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--api-key", "sk-one", "sk-two"],
        ["--api-key", "sk-one", "c2VjcmV0+/="],
        ["gpt2", "--api-key", "sk-one", "sk-two"],
        ["--model", "gpt2", "--api-key", "sk-one", "sk-two"],
    ],
)
def test_a_second_key_is_not_printed_as_a_model(words: list[str], capsys) -> None:
    try:
        status: object = main(["serve", *words])
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    assert status in (1, 2)
    assert "give --api-key again" in err
    assert not any(secret in out + err for secret in ("sk-", "c2VjcmV0"))
