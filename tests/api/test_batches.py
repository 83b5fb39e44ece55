"""Files and batches: their shapes, whose they are, what a batch does with good and bad lines, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_engine import Client, FakeEngine, Reply, chat

from octavo.api.limits import Limits
from octavo.config import ServerConfig
from octavo.errors import ConfigError

CHAT = "/v1/chat/completions"
BOUNDARY = "b0undary"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
DONE = ("completed", "failed", "expired", "cancelled")


def form(content: bytes, filename: str = "in.jsonl", **fields: str) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
    return b"".join([*parts, head.encode(), b"Content-Type: x/y\r\n\r\n", content, f"\r\n--{BOUNDARY}--\r\n".encode()])


def line(number: int, url: str = CHAT, **fields: Any) -> dict[str, Any]:
    return {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": chat(f"Nr. {number}", **fields)}


def jsonl(*lines: Any) -> bytes:
    return b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines)


@dataclass
class Server:
    """A client whose batches are run while it is used."""

    client: Client
    headers: dict[str, str]

    async def get(self, path: str, **query: Any) -> Reply:
        text = "&".join(f"{name}={value}" for name, value in query.items())
        return await self.client.send("GET", path, headers=self.headers, scope={"query_string": text.encode()})

    async def post(self, path: str, body: Any = None) -> Reply:
        headers = {"content-type": "application/json", **self.headers}
        return await self.client.send("POST", path, data=json.dumps(body).encode(), headers=headers)

    async def delete(self, path: str) -> Reply:
        return await self.client.send("DELETE", path, headers=self.headers)

    async def upload(self, content: bytes, **fields: str) -> Reply:
        data = form(content, **({"purpose": "batch"} | fields))
        pieces = [data[start : start + 1000] for start in range(0, len(data), 1000)]
        return await self.client.send("POST", "/v1/files", pieces=pieces, headers={**FORM, **self.headers})

    async def start(self, *lines: Any, **fields: Any) -> dict[str, Any]:
        file = (await self.upload(jsonl(*lines))).json
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", **fields}
        reply = await self.post("/v1/batches", body)
        assert reply.status == 200, reply
        return reply.json

    async def end(self, batch: dict[str, Any]) -> dict[str, Any]:
        return await self.reach(batch, *DONE)

    async def reach(self, batch: dict[str, Any], *statuses: str) -> dict[str, Any]:
        while (found := (await self.get(f"/v1/batches/{batch['id']}")).json)["status"] not in statuses:
            await asyncio.sleep(0.001)
        return found

    async def lines(self, file_id: str | None) -> dict[str, Any]:
        """The lines of a file of answers by custom_id."""
        if file_id is None:
            return {}
        content = (await self.get(f"/v1/files/{file_id}/content")).body
        found = [json.loads(text) for text in content.splitlines()]
        assert len({each["id"] for each in found}) == len(found)
        assert len({each["custom_id"] for each in found}) == len(found)
        return {each["custom_id"]: each for each in found}


def run(
    scenario: Callable[[Server], Awaitable[None]],
    folder: Path,
    engine: FakeEngine | None = None,
    limits: Limits | None = None,
    key: str | None = None,
    **config: Any,
) -> None:
    async def life() -> None:
        async with serving(folder, engine, limits, key, **config) as server:
            await asyncio.wait_for(scenario(server), 100)

    asyncio.run(life())


@asynccontextmanager
async def serving(
    folder: Path,
    engine: FakeEngine | None = None,
    limits: Limits | None = None,
    key: str | None = None,
    **config: Any,
) -> AsyncIterator[Server]:
    limits = limits or Limits(free_disk_bytes=0)
    client = Client(engine or FakeEngine(), ServerConfig(data_dir=str(folder), **config), limits)
    service = client.app.state.desk.batch
    runner = asyncio.create_task(service.run())
    try:
        yield Server(client, {"authorization": f"Bearer {key}"} if key else {})
    finally:
        runner.cancel()
        await asyncio.wait({runner})
        service.close()


def test_a_batch_answers_every_line(tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        batch = await server.start(*(line(number) for number in range(200)), metadata={"job": "nightly"})
        assert batch["object"] == "batch"
        assert batch["metadata"] == {"job": "nightly"}
        assert batch["expires_at"] == batch["created_at"] + 86400
        ended = await server.end(batch)
        assert ended["status"] == "completed"
        assert ended["request_counts"] == {"total": 200, "completed": 200, "failed": 0}
        assert ended["error_file_id"] is None
        answers = await server.lines(ended["output_file_id"])
        assert list(answers) == [f"line-{number}" for number in range(200)]
        direct = (await server.post(CHAT, chat("Nr. 7"))).json
        answer = answers["line-7"]
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["body"]["choices"] == direct["choices"]
        assert answer["response"]["body"]["usage"] == direct["usage"]

    run(scenario, tmp_path)


@pytest.mark.parametrize("endings", [1, 3])
def test_a_server_that_ends_in_the_middle_goes_on(tmp_path: Path, endings: int) -> None:
    """No line is asked again once its answer is stored, none is lost."""
    asked: list[str] = []
    batch: dict[str, Any] = {}

    class Recording(FakeEngine):
        async def generate(self, prompt: list[int], *arguments: Any, **options: Any) -> AsyncIterator[Any]:
            async for output in super().generate(prompt, *arguments, **options):
                if output.finished:
                    asked.append(self.tokenizer.decode(prompt))
                yield output

    async def life(most: int) -> None:
        async with serving(tmp_path, Recording(), batch_concurrency=8) as server:
            if not batch:
                batch.update(await server.start(*(line(number) for number in range(200))))
            while len(asked) < most:
                await asyncio.sleep(0)
            if most < 200:
                return
            ended = await server.end(batch)
            assert ended["request_counts"] == {"total": 200, "completed": 200, "failed": 0}
            assert len(await server.lines(ended["output_file_id"])) == 200

    for ending in range(endings):
        asyncio.run(life(50 * (ending + 1)))
    asyncio.run(life(200))
    assert len(set(asked)) == 200
    assert len(asked) - 200 <= 8 * endings  # those whose answers were not stored yet


def test_a_server_that_ends_while_it_writes_the_answers_writes_them_again(tmp_path: Path) -> None:
    async def begin() -> dict[str, Any]:
        async with serving(tmp_path) as server:
            written = asyncio.Event()

            async def end_here(*_: Any) -> None:
                written.set()
                await asyncio.Event().wait()

            server.client.app.state.desk.batch.batches.close = end_here
            batch = await server.start(line(0), line(1, temperature="hot"))
            await written.wait()
            assert len(list((tmp_path / "files").iterdir())) == 3  # two of which nobody knows of
            return batch

    async def go_on(batch: dict[str, Any]) -> None:
        async with serving(tmp_path) as server:
            ended = await server.end(batch)
            assert ended["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
            assert not server.client.engine.calls
            known = {ended["input_file_id"], ended["output_file_id"], ended["error_file_id"]}
            assert {path.name for path in (tmp_path / "files").iterdir()} == known
            assert list(await server.lines(ended["output_file_id"])) == ["line-0"]
            assert list(await server.lines(ended["error_file_id"])) == ["line-1"]

    asyncio.run(go_on(asyncio.run(begin())))


def test_lines_that_fail_are_in_a_file_of_their_own(tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        wrong = line(1, temperature="hot")
        elsewhere = line(2) | {"body": chat() | {"model": "another"}}
        batch = await server.end(await server.start(line(0), wrong, elsewhere))
        assert batch["status"] == "completed"
        assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
        assert list(await server.lines(batch["output_file_id"])) == ["line-0"]
        errors = await server.lines(batch["error_file_id"])
        assert errors["line-1"]["error"] is None
        assert errors["line-1"]["response"]["status_code"] == 400
        assert errors["line-1"]["response"]["body"]["error"]["param"] == "temperature"
        assert errors["line-2"]["response"]["status_code"] == 404

    run(scenario, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "code", "param"),
    [
        (b'{"custom_id": "a", ', "invalid_json_line", None),
        (b'"text"', "invalid_json_line", None),
        (b'{"custom_id": "a\xff"}', "invalid_json_line", None),
        (b"[" * 4000, "invalid_json_line", None),
        ({"url": CHAT, "body": {}}, "missing_required_parameter", "custom_id"),
        ({"custom_id": 1, "url": CHAT, "body": {}}, "invalid_type", "custom_id"),
        (line(9) | {"body": "text"}, "invalid_json_line", None),
        (line(9) | {"method": "GET"}, "invalid_method", "method"),
        (line(9, "/v1/completions"), "mismatched_endpoint", "url"),
        (line(9, "/metrics"), "mismatched_endpoint", "url"),
        (line(9, stream=True), "unsupported_parameter", "body.stream"),
        (line(0), "duplicate_custom_id", "custom_id"),
        (line(9, user="x" * 6000), "line_too_long", None),
    ],
)
def test_a_file_with_a_wrong_line_is_not_begun(tmp_path: Path, wrong: Any, code: str, param: str | None) -> None:
    async def scenario(server: Server) -> None:
        batch = await server.end(await server.start(line(0), b"  ", wrong, line(1)))
        assert batch["status"] == "failed"
        assert batch["failed_at"] is not None
        (error,) = batch["errors"]["data"]
        assert (error["code"], error["param"], error["line"]) == (code, param, 3)
        assert not server.client.engine.calls

    run(scenario, tmp_path, limits=Limits(free_disk_bytes=0, body_bytes=1000))


@pytest.mark.parametrize(("count", "code"), [(0, "empty_file"), (4, "too_many_requests")])
def test_a_batch_has_lines_but_not_too_many(tmp_path: Path, count: int, code: str) -> None:
    async def scenario(server: Server) -> None:
        batch = await server.end(await server.start(*(line(number) for number in range(count))))
        assert [error["code"] for error in batch["errors"]["data"]] == [code]

    run(scenario, tmp_path, limits=Limits(free_disk_bytes=0, batch_lines=3))


def test_what_was_answered_before_a_batch_is_cancelled_is_kept(tmp_path: Path) -> None:
    engine = FakeEngine(hang_after=3)
    engine.reply = lambda prompt, _: "ok" if b"Nr. 1<" in bytes(prompt) else "for ever"

    async def scenario(server: Server) -> None:
        batch = await server.start(*(line(number) for number in range(9)))
        while (await server.reach(batch, "in_progress"))["request_counts"]["completed"] < 1:
            await asyncio.sleep(0.001)
        cancelling = (await server.post(f"/v1/batches/{batch['id']}/cancel")).json
        assert cancelling["status"] in ("cancelling", "cancelled")
        ended = await server.end(batch)
        assert ended["status"] == "cancelled"
        assert ended["request_counts"] == {"total": 9, "completed": 1, "failed": 8}
        assert list(await server.lines(ended["output_file_id"])) == ["line-1"]
        errors = await server.lines(ended["error_file_id"])
        assert {each["error"]["code"] for each in errors.values()} == {"batch_cancelled"}
        assert not engine.running
        again = await server.post(f"/v1/batches/{batch['id']}/cancel")
        assert (again.status, again.error["code"]) == (400, "invalid_batch_status")

    run(scenario, tmp_path, engine)


def test_a_batch_expires(tmp_path: Path) -> None:
    engine = FakeEngine(gate=asyncio.Event())

    async def scenario(server: Server) -> None:
        service = server.client.app.state.desk.batch
        now = service.batches.clock()
        service.batches.clock = lambda: now - 86399.9  # it is created nearly a day ago
        batch = await server.start(*(line(number) for number in range(3)))
        service.batches.clock = lambda: now
        ended = await server.end(batch)
        assert ended["status"] == "expired"
        errors = await server.lines(ended["error_file_id"])
        assert [each["error"]["code"] for each in errors.values()] == ["batch_expired"] * 3
        assert not engine.running

    run(scenario, tmp_path, engine)


def test_lines_go_behind_all_other_requests(tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        await server.end(await server.start(line(0, priority=-5)))
        await server.post(CHAT, chat("Hi", priority=2**31 - 1))
        of_a_line, own = (call["priority"] for call in server.client.engine.calls)
        assert of_a_line > own

    run(scenario, tmp_path)


def test_few_lines_run_while_others_use_the_server(tmp_path: Path) -> None:
    engine = FakeEngine(gate=asyncio.Event())

    async def scenario(server: Server) -> None:
        assert engine.gate is not None
        own = asyncio.create_task(server.post(CHAT, chat()))
        while not engine.running:
            await asyncio.sleep(0)
        batch = await server.start(*(line(number) for number in range(64)))
        while len(engine.running) < 3:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert len(engine.running) == 1 + 2  # an eighth of 16
        engine.gate.set()
        await own
        most = 0
        while (await server.get(f"/v1/batches/{batch['id']}")).json["status"] not in DONE:
            most = max(most, len(engine.running))
        assert 2 < most <= 16

    run(scenario, tmp_path, engine, batch_concurrency=16)


def test_batches_go_on_side_by_side(tmp_path: Path) -> None:
    """A long one does not keep a short one that came later waiting: their lines take turns."""
    engine = FakeEngine(gate=asyncio.Event())

    async def scenario(server: Server) -> None:
        long = await server.start(*(line(number) for number in range(200)))
        while len(engine.calls) < 2:
            await asyncio.sleep(0)
        short = await server.start(*(line(number, max_tokens=3) for number in range(5)))
        while not server.client.app.state.desk.batch.runner._slots._turn._waiters:  # behind the other, which waits
            await asyncio.sleep(0)
        assert engine.gate is not None
        engine.gate.set()
        assert (await server.end(short))["request_counts"]["completed"] == 5
        assert (await server.end(long))["request_counts"]["completed"] == 200
        of_short = [place for place, call in enumerate(engine.calls) if call["params"].max_tokens == 3]
        assert len(of_short) == 5
        assert of_short[-1] < 30, "each of its lines waits for one or two of the other batch"

    run(scenario, tmp_path, engine, batch_concurrency=2)


def test_lines_wait_for_room(tmp_path: Path) -> None:
    """A share that is used up, or a full server, is no answer to a line."""
    keys = tmp_path / "keys.toml"
    digest = hashlib.sha256(b"secret").hexdigest()
    keys.write_text(f'[[key]]\nname = "slow"\nsha256 = "{digest}"\nconcurrent_requests = 2\n')

    async def scenario(server: Server) -> None:
        batch = await server.end(await server.start(*(line(number) for number in range(5))))
        assert batch["request_counts"] == {"total": 5, "completed": 5, "failed": 0}

    run(scenario, tmp_path / "data", key="secret", api_key_file=str(keys), batch_concurrency=8)


def test_the_time_that_a_request_may_take_is_not_a_lines(tmp_path: Path) -> None:
    """It waits behind everybody else for as long as its batch may."""
    engine = FakeEngine(gate=asyncio.Event())

    async def scenario(server: Server) -> None:
        batch = await server.start(line(0))
        while not engine.running:
            await asyncio.sleep(0)
        assert (await server.post(CHAT, chat())).status == 408
        assert engine.gate is not None
        engine.gate.set()
        assert (await server.end(batch))["request_counts"] == {"total": 1, "completed": 1, "failed": 0}

    run(scenario, tmp_path, engine, limits=Limits(request_seconds=0.05))


def test_everyone_sees_only_their_own(tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        batch = await server.end(await server.start(line(0)))
        stranger = Server(server.client, {"authorization": "Bearer two"})
        for path in (
            f"/v1/files/{batch['input_file_id']}",
            f"/v1/files/{batch['output_file_id']}/content",
            f"/v1/batches/{batch['id']}",
        ):
            assert (await server.get(path)).status == 200
            assert (await stranger.get(path)).status == 404
        assert (await stranger.delete(f"/v1/files/{batch['input_file_id']}")).status == 404
        assert (await stranger.post(f"/v1/batches/{batch['id']}/cancel")).status == 404
        body = {"input_file_id": batch["input_file_id"], "endpoint": CHAT, "completion_window": "24h"}
        refused = await stranger.post("/v1/batches", body)
        assert (refused.status, refused.error["param"]) == (404, "input_file_id")
        for path in ("/v1/files", "/v1/batches"):
            assert (await stranger.get(path)).json["data"] == []
            assert (await stranger.get(path, after=batch["output_file_id"])).status == 404
        assert (await Server(server.client, {}).get("/v1/files")).status == 401

    run(scenario, tmp_path, key="one", api_key=("one", "two"))


def test_a_batch_waits_while_its_key_is_gone(tmp_path: Path) -> None:
    async def begin() -> dict[str, Any]:
        async with serving(tmp_path, FakeEngine(gate=asyncio.Event()), api_key=("one",), key="one") as server:
            return await server.reach(await server.start(line(0)), "in_progress")

    async def without(batch: dict[str, Any]) -> None:
        async with serving(tmp_path) as server:
            for _ in range(100):
                await asyncio.sleep(0.001)
            assert not server.client.engine.calls
            assert (await server.get(f"/v1/batches/{batch['id']}")).status == 404

    async def again(batch: dict[str, Any]) -> None:
        async with serving(tmp_path, api_key=("one",), key="one") as server:
            assert (await server.end(batch))["status"] == "completed"

    batch = asyncio.run(begin())
    asyncio.run(without(batch))
    asyncio.run(again(batch))


def test_lists_go_page_by_page(tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        files = [(await server.upload(jsonl(line(number)))).json["id"] for number in range(5)]
        page = (await server.get("/v1/files", limit=2)).json
        assert [file["id"] for file in page["data"]] == files[:2:-1]
        assert (page["first_id"], page["last_id"], page["has_more"]) == (files[4], files[3], True)
        rest = (await server.get("/v1/files", after=files[3], limit=3)).json
        assert [file["id"] for file in rest["data"]] == files[2::-1]
        assert rest["has_more"] is False
        upwards = (await server.get("/v1/files", order="asc", after=files[1])).json
        assert [file["id"] for file in upwards["data"]] == files[2:]
        assert (await server.get("/v1/files", purpose="batch_output")).json["data"] == []
        batches = [(await server.end(await server.start(line(number))))["id"] for number in range(3)]
        page = (await server.get("/v1/batches", limit=2)).json
        assert [batch["id"] for batch in page["data"]] == batches[:0:-1]
        assert page["has_more"] is True
        assert [batch["id"] for batch in (await server.get("/v1/batches", after=batches[1])).json["data"]] == batches[
            :1
        ]
        for wrong in ({"limit": 0}, {"limit": "x"}, {"limit": 101}):
            refused = await server.get("/v1/batches", **wrong)
            assert (refused.status, refused.error["param"]) == (400, "limit")

    run(scenario, tmp_path)


def test_files_are_kept_deleted_and_used(tmp_path: Path) -> None:
    engine = FakeEngine(gate=asyncio.Event())

    async def scenario(server: Server) -> None:
        content = jsonl(line(0)) + b"\r\n--not the boundary\r\n" * 1000
        file = (await server.upload(content)).json
        assert {name: file[name] for name in ("object", "bytes", "filename", "purpose", "status", "expires_at")} == {
            "object": "file",
            "bytes": len(content),
            "filename": "in.jsonl",
            "purpose": "batch",
            "status": "processed",
            "expires_at": None,
        }
        assert (await server.get(f"/v1/files/{file['id']}/content")).body == content
        assert (await server.delete(f"/v1/files/{file['id']}")).json == {
            "id": file["id"],
            "object": "file",
            "deleted": True,
        }
        assert (await server.get(f"/v1/files/{file['id']}")).status == 404
        batch = await server.reach(await server.start(line(0)), "in_progress")
        refused = await server.delete(f"/v1/files/{batch['input_file_id']}")
        assert (refused.status, refused.error["code"]) == (400, "file_in_use")
        assert engine.gate is not None
        engine.gate.set()
        ended = await server.end(batch)
        assert (await server.delete(f"/v1/files/{batch['input_file_id']}")).status == 200
        assert [path.name for path in (tmp_path / "files").iterdir()] == [ended["output_file_id"]]
        assert list((tmp_path / "incoming").iterdir()) == []

    run(scenario, tmp_path, engine)


def test_files_expire(tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        file = (await server.upload(b"x", **fields)).json
        assert file["expires_at"] == file["created_at"] + 3600
        files = server.client.app.state.desk.batch.files
        await files.expire()
        assert (await server.get(f"/v1/files/{file['id']}")).status == 200
        now = files._clock()
        files._clock = lambda: now + 3601
        await files.expire()
        assert (await server.get(f"/v1/files/{file['id']}")).status == 404
        assert list((tmp_path / "files").iterdir()) == []

    run(scenario, tmp_path)


@pytest.mark.parametrize(
    ("data", "headers", "status", "param"),
    [
        (form(b"x"), FORM, 400, "purpose"),
        (form(b"x", purpose="fine-tune"), FORM, 400, "purpose"),
        (form(b"x", purpose="batch", **{"expires_after[seconds]": "1"}), FORM, 400, "expires_after"),
        (form(b"x" * 5001, purpose="batch"), FORM, 413, "file"),
        (form(b"x" * 100_000, purpose="batch"), FORM, 413, None),
        (form(b"x", purpose="y" * 2000), FORM, 400, None),
        (form(b"x", purpose="batch")[:-20], FORM, 400, None),
        (b"--" + BOUNDARY.encode() + b"--\r\n", FORM, 400, "file"),
        (
            form(b"x", purpose="batch").removesuffix(b"--\r\n") + form(b"y").removeprefix(b"--b0undary"),
            FORM,
            400,
            "file",
        ),
        (b"garbage", FORM, 400, None),
        (b"", FORM, 400, None),
        (form(b"x", purpose="batch"), {"content-type": "multipart/form-data"}, 400, None),
        (b"{}", {"content-type": "application/json"}, 415, None),
    ],
)
def test_forms_that_are_refused_leave_nothing(
    tmp_path: Path, data: bytes, headers: dict[str, str], status: int, param: str | None
) -> None:
    async def scenario(server: Server) -> None:
        reply = await server.client.send("POST", "/v1/files", data=data, headers=headers)
        assert (reply.status, reply.error["param"]) == (status, param)
        assert list((tmp_path / "files").iterdir()) == list((tmp_path / "incoming").iterdir()) == []

    run(scenario, tmp_path, limits=Limits(free_disk_bytes=0, file_bytes=5000))


def test_storage_is_bounded(tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        assert (await server.upload(b"x" * 60)).status == 200
        refused = await server.upload(b"x" * 60)
        assert (refused.status, refused.error["code"]) == (400, "storage_limit_reached")
        assert (await server.upload(b"x")).status == 200
        refused = await server.upload(b"x")
        assert (refused.status, refused.error["code"]) == (400, "too_many_files")

    run(scenario, tmp_path, limits=Limits(free_disk_bytes=0, stored_files=2, stored_bytes=100))


def test_a_full_disk_refuses_files(tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        assert (await server.upload(b"x")).status == 507

    run(scenario, tmp_path, limits=Limits(free_disk_bytes=2**62))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/files"}, "endpoint"),
        ({"endpoint": "/v1/chat"}, "endpoint"),
        ({"completion_window": "24"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata"),
    ],
)
def test_batches_that_are_refused(tmp_path: Path, fields: dict[str, Any], param: str) -> None:
    async def scenario(server: Server) -> None:
        file = (await server.upload(jsonl(line(0)))).json
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        reply = await server.post("/v1/batches", body | fields)
        assert reply.status in (400, 404)
        assert reply.error["param"].startswith(param)
        assert (await server.get("/v1/batches")).json["data"] == []

    run(scenario, tmp_path)


def test_open_batches_are_bounded(tmp_path: Path) -> None:
    async def scenario(server: Server) -> None:
        await server.start(line(0))
        file = (await server.upload(jsonl(line(1)))).json
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        assert (await server.post("/v1/batches", body)).status == 429

    run(scenario, tmp_path, FakeEngine(gate=asyncio.Event()), Limits(free_disk_bytes=0, open_batches=1))


def test_a_server_without_a_data_folder_says_what_to_do() -> None:
    client = Client()
    for method, path in (("GET", "/v1/files"), ("GET", "/v1/batches/x"), ("DELETE", "/v1/files/x")):
        reply = client.request(method, path)
        assert (reply.status, reply.error["code"]) == (404, "data_dir_missing")
        assert "--data-dir" in reply.error["message"]


def test_a_data_folder_has_one_server(tmp_path: Path) -> None:
    async def scenario(_: Server) -> None:
        with pytest.raises(ConfigError, match="another server uses"):
            Client(FakeEngine(), ServerConfig(data_dir=str(tmp_path)))

    run(scenario, tmp_path)
    with pytest.raises(ConfigError, match="cannot use the data folder"):
        Client(FakeEngine(), ServerConfig(data_dir="/proc/nowhere"))
