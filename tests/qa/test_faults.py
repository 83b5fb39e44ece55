"""Faults F1 to F37 as far as one server has them: clients, sockets, processes, memory, files and signals that fail."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from chaos import Weather, weather
from kill_storm import storm
from qa_server import QaServer, alive, parse, read_to_end, refused, serve, serve_command, serve_fake, started, until

pytestmark = pytest.mark.qa

COMPLETIONS = "/v1/completions"
ENDLESS: dict[str, Any] = {"max_tokens": 8000, "ignore_eos": True, "temperature": 0}


def drain_until(connection: socket.socket, found: bytes) -> bytes:
    received = b""
    while found not in received:
        part = connection.recv(65536)
        assert part, received
        received += part
    return received


# ---------------------------------------------------------------------- clients


def test_f01_a_client_leaves_while_its_prompt_is_computed(server: QaServer) -> None:
    cancelled = server.metric("requests_cancelled_total")
    for _ in range(10):
        with server.connect() as connection:
            connection.sendall(server.request(COMPLETIONS, {"prompt": "x" * 8000, "max_tokens": 100}))
            until(lambda: server.metric("num_requests_running") > 0, "the request never began")
        until(server.idle, "the request went on")
    assert server.metric("requests_cancelled_total") >= cancelled + 1


def test_f01_a_client_leaves_while_text_is_made(server: QaServer) -> None:
    cancelled = server.metric("requests_cancelled_total")
    for _ in range(20):
        with server.streaming():
            pass
    until(server.idle, "streams went on")
    assert server.metric("requests_cancelled_total") == cancelled + 20


def test_f01_clients_leave_while_they_wait_in_the_queue(tiny_model: Path, tmp_path: Path) -> None:
    with serve(tiny_model, tmp_path, "--max-num-seqs", "1", "--kv-cache-memory", "8MiB") as server:
        cancelled = server.metric("requests_cancelled_total")
        with server.streaming(**ENDLESS) as first, ExitStack() as waiting:
            for _ in range(5):
                connection = waiting.enter_context(server.connect())
                connection.sendall(server.request(COMPLETIONS, {"prompt": "x", "max_tokens": 5}))
            until(lambda: server.metric("num_requests_waiting") == 5, "they never waited")
            waiting.close()
            until(lambda: server.metric("num_requests_waiting") == 0, "they still wait")
            assert server.metric("requests_cancelled_total") == cancelled + 5
            assert first.recv(65536)
        until(server.idle, "the stream went on")


def test_f02_silent_peers_are_probed(server: QaServer) -> None:
    """The kernel's own table says that a keepalive timer runs on the server's side of a connection."""
    with server.connect() as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        drain_until(connection, b"live")  # nothing is under way any more that another timer would cover
        ours = connection.getsockname()[1]

        def probed() -> bool:
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
                _, local, remote, _, _, timer, *_ = line.split()
                if (int(local.split(":")[1], 16), int(remote.split(":")[1], 16)) == (server.port, ours):
                    return timer.startswith("02:")
            return False

        until(probed, "no keepalive timer runs")


def test_f03_readers_that_stall_are_cut_and_the_others_go_on(tmp_path: Path) -> None:
    with serve_fake(tmp_path, unread_seconds=1, characters=3_000_000) as server, ExitStack() as stalled:
        connections = []
        for _ in range(20):
            connection = stalled.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(server.request(COMPLETIONS, {"prompt": "x", "stream": True, "max_tokens": 3_000_000}))
            connections.append(connection)
        assert server.complete("x", max_tokens=5).status == 200
        for connection in connections:
            connection.settimeout(60)
            raw = read_to_end(connection)
            assert b"[DONE]" not in raw


@pytest.mark.parametrize("stream", [False, True])
def test_f04_a_client_that_closes_its_half_has_left(server: QaServer, stream: bool) -> None:
    """On the wire it looks like one that is gone, and to go on for those would cost more than these are worth."""
    cancelled = server.metric("requests_cancelled_total")
    with server.connect() as connection:
        connection.sendall(server.request(COMPLETIONS, {"prompt": "Once", "stream": stream, **ENDLESS}))
        until(lambda: server.metric("num_requests_running") > 0, "the request never began")
        connection.shutdown(socket.SHUT_WR)
        assert b"[DONE]" not in read_to_end(connection)
    until(server.idle, "the request went on")
    assert server.metric("requests_cancelled_total") == cancelled + 1


# ---------------------------------------------------------------------- bad weather in between

WEATHERS: dict[str, tuple[Weather, Weather]] = {
    "slow": (Weather(delay=0.02), Weather(delay=0.005)),
    "trickle": (Weather(piece=7), Weather(piece=3)),
}


@pytest.mark.parametrize(("up", "down"), WEATHERS.values(), ids=WEATHERS.keys())
def test_f02_what_arrives_slowly_arrives_whole(server: QaServer, up: Weather, down: Weather) -> None:
    ask = {"prompt": "Once", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    expected = server.complete(**ask).text
    with (
        weather(server.port, up=up, down=down) as port,
        socket.create_connection(("127.0.0.1", port), 60) as connection,
    ):
        connection.sendall(server.request(COMPLETIONS, {**ask, "stream": True}))
        reply = parse(read_to_end(connection))
    assert reply.complete
    assert "".join(event["choices"][0]["text"] for event in reply.events[:-1]) == expected


CUTS: dict[str, tuple[Weather, Weather]] = {
    "request cut": (Weather(cut_after=50, piece=20), Weather()),
    "answer cut": (Weather(), Weather(cut_after=3000, piece=500)),
    "request stalls": (Weather(stall_after=50, piece=20), Weather()),
    "answer stalls": (Weather(), Weather(stall_after=3000, piece=500)),
}


@pytest.mark.parametrize(("up", "down"), CUTS.values(), ids=CUTS.keys())
def test_f01_storm_of_connections_that_break(roomy: QaServer, up: Weather, down: Weather) -> None:
    """Clients come through a proxy that cuts or stalls every one of them; nothing of theirs remains."""
    server = roomy
    with weather(server.port, up=up, down=down) as port, ExitStack() as clients:
        connections = []
        for number in range(60):
            connection = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            body = {"prompt": f"Story {number}", "stream": number % 2 == 0, **ENDLESS, "max_tokens": 700}
            connection.sendall(server.request(COMPLETIONS, body))
            connections.append(connection)
        assert server.canary() == server.golden
        if up.cut_after or down.cut_after:
            for connection in connections:
                assert b"[DONE]" not in read_to_end(connection)


# ---------------------------------------------------------------------- processes


def test_f05_the_engine_is_killed_under_streams(tiny_model: Path, tmp_path: Path) -> None:
    with serve(tiny_model, tmp_path, "--kv-cache-memory", "8MiB") as server:
        assert storm(server, rounds=2, kills=1, count=8, max_tokens=64) == 0
        assert server.metric("core_restarts_total") == 2
        until(server.idle, "the ledger does not balance")


def test_f11_the_server_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    with started(serve_command(tiny_model, "--kv-cache-memory", "8MiB"), tmp_path) as server:
        server.wait_ready()
        with server.streaming():
            family = server.pids()
            os.kill(server.process.pid, signal.SIGKILL)
            until(lambda: not any(alive(pid) for pid in family[1:]), "the engine outlived its server")


def test_f12_the_servers_parent_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    """A shell that started the server dies: the server goes on alone, and a signal still ends all of it."""
    command = serve_command(tiny_model, "--kv-cache-memory", "8MiB")
    shell = "{} & echo pid $!; wait".format(" ".join(command))
    with started(["/bin/sh", "-c", shell], tmp_path) as server:
        server.wait_ready()
        (line,) = [line for line in server.stdout.splitlines() if line.startswith("pid ")]
        pid = int(line.split()[1])
        server.process.kill()
        server.process.wait()
        try:
            assert server.complete("x").status == 200
        finally:
            os.kill(pid, signal.SIGTERM)
        until(lambda: not alive(pid), "the orphan did not end")


@pytest.mark.parametrize("signals", [1, 2])
def test_f13_f14_a_signal_drains_and_a_second_does_not_wait(tiny_model: Path, tmp_path: Path, signals: int) -> None:
    with started(serve_command(tiny_model, "--kv-cache-memory", "8MiB"), tmp_path) as server:
        server.wait_ready()
        with server.streaming(max_tokens=6000) as stream:
            server.process.send_signal(signal.SIGTERM)
            until(lambda: "shutting down" in server.log.read_text(), "the signal was not heard")
            if signals == 2:
                server.process.send_signal(signal.SIGTERM)
            else:
                reply = server.get("/ready")
                assert reply.status == 503
                assert reply.error["code"] == "shutting_down"
                assert server.complete("x").status == 503
            rest = read_to_end(stream)
        assert server.process.wait(60) == 0
        if signals == 1:
            assert b"[DONE]" in rest
        else:
            assert b"[DONE]" not in rest
            assert b'"code":"shutting_down"' in rest


def test_f15_a_signal_while_the_model_loads(tiny_model: Path, tmp_path: Path) -> None:
    with started(serve_command(tiny_model), tmp_path) as server:
        until(lambda: "listens on" in server.log.read_text(), "the server never listened")
        assert server.stop() == 0
        assert server.process.stdout is not None
        assert "serves" not in server.process.stdout.read()


def test_f15_a_signal_with_idle_connections(tiny_model: Path, tmp_path: Path) -> None:
    """Connections that are kept alive, or say nothing, hold nobody up: the grace of 300 s is not used."""
    flags = ("--kv-cache-memory", "8MiB", "--shutdown-timeout", "300")
    with started(serve_command(tiny_model, *flags), tmp_path) as server, ExitStack() as idle:
        server.wait_ready()
        for _ in range(5):
            idle.enter_context(server.connect())
            kept = idle.enter_context(server.connect())
            kept.sendall(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n")
            drain_until(kept, b"live")
        assert server.stop() == 0


def test_f36_a_server_that_stands_still_for_a_moment(server: QaServer) -> None:
    """Neither side takes a pause of the other for a death."""
    expected = server.complete("Once", **{**ENDLESS, "max_tokens": 3000}).text
    with server.streaming("Once", max_tokens=3000) as stream:
        os.kill(server.process.pid, signal.SIGSTOP)
        woken = threading.Timer(2, os.kill, (server.process.pid, signal.SIGCONT))
        woken.start()
        raw = read_to_end(stream)
        woken.join()
    assert b"[DONE]" in raw
    assert len(expected) > 100


# ---------------------------------------------------------------------- memory, files, descriptors


def test_f07_without_memory_sequences_give_way_and_lose_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """Eight sequences that fit one or two at a time: preempted again and again, they say what each says alone."""
    flags = ("--num-gpu-blocks-override", "40", "--max-model-len", "600")
    with serve(tiny_model, tmp_path, *flags) as server:
        ask = {"max_tokens": 300, "ignore_eos": True, "temperature": 0}
        prompts = [f"Sequence number {number}" for number in range(8)]
        alone = [server.complete(prompt, **ask).text for prompt in prompts]
        connections = [server.connect() for _ in prompts]
        for prompt, connection in zip(prompts, connections, strict=True):
            connection.sendall(server.request(COMPLETIONS, {"prompt": prompt, **ask}))
        together = [parse(read_to_end(connection)).text for connection in connections]
        for connection in connections:
            connection.close()
        assert together == alone
        assert server.metric("num_preemptions_total") > 0
        until(server.idle, "blocks never came back")


def test_f08_a_request_larger_than_all_memory_is_refused_at_once(tiny_model: Path, tmp_path: Path) -> None:
    with serve(tiny_model, tmp_path, "--num-gpu-blocks-override", "40") as server:
        refused(server.complete("x" * 1000), param="prompt", code="context_length_exceeded")
        refused(server.complete("x", max_tokens=1000), param="max_tokens", code="context_length_exceeded")
        assert server.complete("x" * 500, max_tokens=100, ignore_eos=True).status == 200


def test_f17_the_model_file_is_cut_short_under_a_running_server(tiny_model: Path, tmp_path: Path) -> None:
    """Once it is ready, nothing of a server still reads the file."""
    model = tmp_path / "model.gguf"
    shutil.copy(tiny_model, model)
    with serve(model, tmp_path, "--kv-cache-memory", "8MiB") as server:
        before = server.canary()
        for pid in server.pids():
            assert str(model) not in Path(f"/proc/{pid}/maps").read_text()
        os.truncate(model, 100)
        assert server.canary() == before


def test_f18_a_broken_file_in_the_cache_is_not_served(tmp_path: Path) -> None:
    """Of the wrong size: it counts as absent, and without a network that is one clear line."""
    broken = tmp_path / "models" / "SmolLM2-135M-Instruct.gguf"
    broken.parent.mkdir()
    broken.write_bytes(b"GGUF" + bytes(1000))
    command = serve_command(Path("SmolLM2-135M-Instruct"))
    with started(command, tmp_path, OCTAVO_CACHE=str(tmp_path), OCTAVO_OFFLINE="1") as server:
        assert server.process.wait(60) == 1
        assert "is not in the cache" in server.log.read_text()


def test_f19_without_descriptors_streams_live(server: QaServer) -> None:
    """A server that may open no more: what runs goes on, and when some are free again it serves."""
    expected = server.complete("Once", **{**ENDLESS, "max_tokens": 3000}).text
    pid = server.process.pid
    with server.connect() as stream:
        body = {"prompt": "Once", "stream": True, **ENDLESS, "max_tokens": 3000}
        stream.sendall(server.request(COMPLETIONS, body))
        began = drain_until(stream, b"data: ")
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 4, limits[1]))
        try:
            with ExitStack() as many:
                for _ in range(50):
                    many.enter_context(server.connect())
                reply = parse(began + read_to_end(stream))
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert "".join(event["choices"][0]["text"] for event in reply.events[:-1]) == expected
    assert server.canary() == server.golden


# ---------------------------------------------------------------------- load


def test_f20_more_than_fits_is_refused_at_once_and_the_rest_is_served(tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--max-num-seqs", "4", "--max-num-queued-reqs", "4", "--kv-cache-memory", "8MiB")
    with serve(tiny_model, tmp_path, *flags) as server:
        connections = [server.connect() for _ in range(100)]
        for number, connection in enumerate(connections):
            connection.sendall(
                server.request(COMPLETIONS, {"prompt": f"{number}", "max_tokens": 400, "temperature": 0})
            )
        replies = [parse(read_to_end(connection)) for connection in connections]
        for connection in connections:
            connection.close()
        served = [reply for reply in replies if reply.status == 200]
        busy = [reply for reply in replies if reply.status != 200]
        assert len(served) >= 8
        assert all(reply.complete for reply in replies)
        assert {(reply.status, reply.error["type"]) for reply in busy} == {(503, "overloaded_error")}
        assert all(int(reply.headers["retry-after"]) > 0 for reply in busy)
        until(server.idle, "the ledger does not balance")


def test_f22_a_long_prompt_does_not_stop_the_others(tiny_model: Path, tmp_path: Path) -> None:
    """While 8,000 tokens of prompt are computed 256 at a time, a stream gets its tokens in between."""
    with serve(tiny_model, tmp_path, "--max-num-batched-tokens", "256", "--kv-cache-memory", "16MiB") as server:
        with server.streaming(max_tokens=6000) as stream, server.connect() as convoy:
            stream.setblocking(True)
            convoy.sendall(server.request(COMPLETIONS, {"prompt": "x" * 8000, "max_tokens": 1, "stream": True}))
            between = 0
            convoy.setblocking(False)
            while not _arrived(convoy):
                between += stream.recv(65536).count(b"data: ")
        assert between >= 20


def _arrived(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_f35_nobody_reads_the_log(tiny_model: Path, tmp_path: Path) -> None:
    """The server's log goes into a pipe that nobody empties: requests are served all the same."""
    command = serve_command(tiny_model, "--kv-cache-memory", "8MiB")
    reading, writing = os.pipe()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writing, text=True)
    os.close(writing)
    server = QaServer(process, tmp_path / "none", None)
    try:
        server.wait_ready()
        for _ in range(1500):
            with server.connect() as connection:
                connection.settimeout(15)
                connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                assert b" 200 OK" in drain_until(connection, b"data")
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        assert process.stdout is not None
        process.stdout.close()
