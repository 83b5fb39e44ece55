"""Keys from a file: made, kept hashed, read again; what each may do, and how much of it."""

from __future__ import annotations

import asyncio
import logging
import re
import tomllib
from pathlib import Path

import pytest
from fake_engine import Client, FakeEngine, Reply, chat, completion

from octavo.api.keys import Keyring, issue, read
from octavo.api.tenants import Bucket, Share, Tenant
from octavo.cli.main import main
from octavo.config import ServerConfig
from octavo.errors import ConfigError, RateLimited

CHAT = "/v1/chat/completions"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def client(path: Path, **options: object) -> Client:
    return Client(FakeEngine(), ServerConfig(api_key_file=str(path), **options))  # type: ignore[arg-type]


def ask(client: Client, key: str, **fields: object) -> Reply:
    return client.post(CHAT, chat(**fields), headers=bearer(key))


# ---------------------------------------------------------------------- the file


def test_a_key_is_shown_once_and_kept_only_as_a_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    assert main(["keys", "new", "alice", "--file", str(path), "--tokens-per-minute", "500"]) == 0
    assert main(["keys", "new", "root", "--file", str(path), "--role", "admin"]) == 0
    out, err = capsys.readouterr()
    alice, root = out.split()
    assert err.count("the only time that the key is shown") == 2
    assert alice not in err
    assert alice != root
    assert path.stat().st_mode & 0o777 == 0o600
    assert not {alice, root, alice[7:], root[7:]} & set(re.findall(r"[\w-]+", path.read_text()))
    first, second = tomllib.loads(path.read_text())["key"]
    assert (first["name"], first["role"], first["tokens_per_minute"]) == ("alice", "user", 500)
    assert (second["name"], second["role"]) == ("root", "admin")
    served = client(path)
    assert ask(served, alice).status == ask(served, root).status == 200
    assert ask(served, alice[:-1]).status == served.post(CHAT, chat()).status == 401


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alice"], "has a key named alice already"),
        (["b\nc"], "there can be no such key: name must be 1 to 64 letters, digits and . _ @ -"),
        (["x" * 65], "there can be no such key"),
        (["bob", "--requests-per-minute", "0"], "requests_per_minute must be a whole number, at least 1"),
    ],
)
def test_a_key_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path = tmp_path / "keys.toml"
    issue(path, "alice", "user", Share())
    before = path.read_text()
    assert main(["keys", "new", *arguments, "--file", str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert path.read_text() == before


HASH = "0" * 64
BAD_FILES = [
    ("key = 3", "each key is a table"),
    ("key = [3]", "key 1: it must be a table"),
    ("[[key]", "no file of keys"),
    ("[[keys]]\nname = 'a'", "has 'keys' in it; a file of keys has only tables [[key]]"),
    ("[[key]]\nname = 'a'", "the key named 'a': sha256 must be 64 hexadecimal digits"),
    (f"[[key]]\nname = 'a'\nsha256 = '{HASH[1:]}'", "sha256 must be 64 hexadecimal digits"),
    (f"[[key]]\nname = 'a'\nsha256 = '{HASH}'\nrole = 'root'", "the key named 'a': role must be user or admin"),
    (
        f"[[key]]\nname = 'a'\nsha256 = '{HASH}'\nreqests_per_minute = 3",
        "no field 'reqests_per_minute'; did you mean requests_per_minute?",
    ),
    (f"[[key]]\nname = 'a'\nsha256 = '{HASH}'\ntokens_per_minute = 1.5", "tokens_per_minute must be a whole number"),
    (
        f"[[key]]\nname = 'a'\nsha256 = '{HASH}'\n[[key]]\nname = 'b'\nsha256 = '{HASH}'",
        "two keys have the same sha256",
    ),
    (f"[[key]]\nname = 'a\\n'\nsha256 = '{HASH}'", "name must be 1 to 64 letters, digits"),
    (f"[[key]]\nsha256 = '{HASH}'", "key 1: name must be"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(path))) as raised:
        read(path)
    assert message in raised.value.message
    assert "\n" not in raised.value.message
    with pytest.raises(ConfigError, match="cannot read the keys"):
        client(tmp_path / "nothing.toml")


def test_a_file_without_keys_lets_nobody_in_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    path.touch()
    Keyring(("flag",), path)
    assert not caplog.records
    assert client(path).post(CHAT, chat()).status == ask(client(path), "").status == 401
    assert client(path).get("/live").status == 200
    assert {(record.levelname, "nobody can come in" in record.message) for record in caplog.records} == {
        ("WARNING", True)
    }
    first = Keyring(path=path)
    key = issue(path, "first", "user", Share()).encode()
    first.look()
    assert first.find(key) is not None


def test_a_mistake_is_in_the_log_before_anybody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.toml"
    issue(path, "alice", "user", Share())
    keys = Keyring(path=path)
    looks = iter(range(3))

    async def sleep(seconds: float) -> None:
        look = next(looks)
        if look == 2:
            raise asyncio.CancelledError
        if look == 0:
            path.write_text("nonsense [")

    monkeypatch.setattr("octavo.api.keys.asyncio.sleep", sleep)
    said: list[str] = []
    monkeypatch.setattr("octavo.api.keys.logger.error", lambda text, *values: said.append(text % values))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(keys.watch())
    assert len(said) == 1
    assert str(path) in said[0]


def test_the_file_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys.toml"
    alice = issue(path, "alice", "user", Share(requests_per_minute=2)).encode()
    keys = Keyring(path=path)
    before = keys.find(alice)
    assert before is not None
    with before.request():
        pass
    bob = issue(path, "bob", "admin", Share()).encode()
    assert keys.find(bob) is None
    keys.look()
    found = keys.find(bob)
    assert found is not None
    assert found.role == "admin"
    assert keys.find(alice) is before  # with what is used up
    for mistake in ("nonsense [", "a = " + "[" * 100_000, "", "# all taken out\n", None):
        path.unlink() if mistake is None else path.write_text(mistake)
        caplog.clear()
        keys.look()
        keys.look()
        assert [record.levelname for record in caplog.records if "stay" in record.getMessage()] == ["ERROR"]
        assert keys.find(alice) is before
    issue(path, "bob", "user", Share())
    keys.look()
    assert keys.find(alice) is keys.find(bob) is None  # taken back


# ---------------------------------------------------------------------- what a key may do


def test_a_key_is_added_to_a_file_whose_last_line_has_no_end(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    for name in ("a", "b", "c"):
        issue(path, name, "user", Share())
        path.write_text(path.read_text().rstrip())
    assert [entry.name for entry in read(path)] == ["a", "b", "c"]


def test_only_admins_read_metrics(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    user, admin = issue(path, "u", "user", Share()), issue(path, "a", "admin", Share())
    served = client(path, api_key=("flag",))
    reply = served.get("/metrics", headers=bearer(user))
    assert (reply.status, reply.error["code"]) == (403, "permission_denied")
    assert served.get("/metrics", headers=bearer(admin)).status == 200
    assert served.get("/metrics", headers=bearer("flag")).status == 200
    assert served.get("/version", headers=bearer(user)).status == 200


def test_tenants_do_not_share_cached_beginnings(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    keys = [issue(path, name, "user", Share()) for name in ("a", "b")]
    served = client(path, api_key=("flag", "other"))
    for key in (*keys, "flag", "other"):
        for salt in (None, "x"):
            assert ask(served, key, cache_salt=salt).status == 200
    served.post("/generate", {"prompt": "Once"}, headers=bearer(keys[0]))
    salts = [call["cache_salt"] for call in served.engine.calls]
    assert None not in salts
    assert len(set(salts)) == 8  # two for each of four keys
    assert salts[8] == salts[0]  # a tenant's own requests share
    open_to_all = Client()
    for salt in (None, "x"):
        open_to_all.post("/v1/completions", completion(cache_salt=salt))
    assert [call["cache_salt"] for call in open_to_all.engine.calls] == [None, "x"]


def test_a_key_with_too_many_requests_waits_and_others_do_not(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    greedy = issue(path, "greedy", "user", Share(requests_per_minute=2))
    other = issue(path, "other", "user", Share())
    served = client(path)
    assert [ask(served, greedy).status for _ in range(3)] == [200, 200, 429]
    reply = ask(served, greedy)
    assert (reply.error["code"], reply.error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert 1 <= int(reply.header("retry-after") or 0) <= 30
    assert ask(served, other).status == 200
    assert served.get("/v1/models", headers=bearer(greedy)).status == 200


def test_tokens_of_prompt_and_answer_count(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    key = issue(path, "a", "user", Share(tokens_per_minute=20))
    served = client(path)
    assert served.post("/v1/completions", completion([1, 2, 3], max_tokens=2), headers=bearer(key)).status == 200
    reply = served.post("/v1/completions", completion("x" * 12, max_tokens=9), headers=bearer(key))
    assert reply.status == 200  # 3 + 2 of 20 were used: it may begin, and go into debt
    reply = ask(served, key)
    assert reply.status == 429
    assert "20 tokens a minute" in reply.error["message"]


def test_requests_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    key = issue(path, "a", "user", Share(concurrent_requests=1))

    async def scenario() -> None:
        served = client(path)
        served.engine.hang_after = 1
        data = b'{"model":"fake-model","prompt":"x"}'
        headers = {"content-type": "application/json", **bearer(key)}
        leave = asyncio.Event()
        running = asyncio.create_task(
            served.send("POST", "/v1/completions", data=data, headers=headers, leave_when=leave.is_set)
        )
        while not served.engine.running:
            await asyncio.sleep(0)
        refused = await served.send("POST", "/v1/completions", data=data, headers=headers)
        assert (refused.status, refused.header("retry-after")) == (429, "1")
        leave.set()
        await running
        served.engine.hang_after = None
        assert (await served.send("POST", "/v1/completions", data=data, headers=headers)).status == 200

    asyncio.run(scenario())


def test_names_but_no_keys_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys.toml"
    key = issue(path, "alice", "user", Share(requests_per_minute=1))
    with caplog.at_level(logging.DEBUG):
        served = client(path)
        for each in (key, key, "wrong-key"):
            ask(served, each)
    assert re.search(r"POST /v1/chat/completions 200 \d+ms [0-9a-f]{32} alice\n", caplog.text)
    assert re.search(r"POST /v1/chat/completions 429 .* alice \(RateLimited\)\n", caplog.text)
    assert re.search(r"POST /v1/chat/completions 401 \d+ms [0-9a-f]{32}\n", caplog.text)
    assert key not in caplog.text
    assert "wrong-key" not in caplog.text
    assert read(path)[0].sha256 not in caplog.text


# ---------------------------------------------------------------------- shares


def test_a_bucket_fills_evenly_and_no_further_than_a_minutes_worth() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.spend(60)
    assert bucket.wait() == pytest.approx(1)
    clock.now += 1
    assert bucket.wait() == 0
    bucket.spend(11)  # ten that are not there
    assert bucket.wait() == pytest.approx(11)
    clock.now += 3600
    bucket.spend(59)
    assert bucket.wait() == 0
    bucket.spend(1)
    assert bucket.wait() == pytest.approx(1)
    assert Bucket(None, clock).wait() == 0


def test_another_share_begins_anew_and_the_same_goes_on() -> None:
    tenant = Tenant("a", "user", Share(requests_per_minute=1), Clock())
    with tenant.request():
        pass
    tenant.change("user", Share(requests_per_minute=1))
    with pytest.raises(RateLimited):
        tenant.check()
    tenant.change("user", Share(requests_per_minute=2))
    tenant.check()
