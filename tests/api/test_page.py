"""The web page's files: who gets them, what a browser is told about them, and that they need nothing from elsewhere."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from fake_engine import Client, Reply, chat

import octavo.api
from octavo.config import ServerConfig

WEB = Path(octavo.api.__file__).parent / "web"
FILES = sorted(path.name for path in WEB.iterdir())
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
KEYED = ServerConfig(api_key=("k",))
MOST_BYTES = 96_000  # small enough to be read
MOST_BYTES_PACKED = 33_000


def page(client: Client, **options) -> Reply:
    return client.get("/", headers=BROWSER, **options)


def test_browsers_get_the_page_and_programs_the_json() -> None:
    client = Client()
    reply = page(client)
    assert reply.status == 200
    assert reply.header("content-type") == "text/html; charset=utf-8"
    assert reply.header("vary") == "accept, accept-encoding"
    assert reply.body == (WEB / "index.html").read_bytes()
    for accept in ("*/*", "application/json", "application/json, text/html", ""):
        assert client.get("/", headers={"accept": accept}).json["name"] == "octavo"
    assert client.get("/").json["name"] == "octavo"


@pytest.mark.parametrize(
    ("suffix", "media_type"),
    [("css", "text/css; charset=utf-8"), ("js", "text/javascript; charset=utf-8"), ("svg", "image/svg+xml")],
)
def test_each_file_has_its_type(suffix: str, media_type: str) -> None:
    names = [name for name in FILES if name.endswith(suffix)]
    assert names
    for name in names:
        reply = Client().get(f"/page/{name}")
        assert (reply.status, reply.header("content-type")) == (200, media_type)
        assert reply.body == (WEB / name).read_bytes()


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/icon.svg"])
def test_a_browser_is_told_what_it_must_not_do(path: str) -> None:
    reply = Client().get(path, headers=BROWSER)
    policy = dict(
        part.split(" ", 1) for part in (reply.header("content-security-policy") or "").split("; ") if " " in part
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert reply.header("x-content-type-options") == "nosniff"
    assert reply.header("referrer-policy") == "no-referrer"
    assert reply.header("x-request-id")


def test_what_the_browser_has_is_not_sent_again() -> None:
    client = Client()
    tag = page(client).header("etag")
    assert tag
    assert tag != client.get("/page/app.js").header("etag")
    for known in (tag, f'"other", {tag}'):
        reply = client.get("/", headers={**BROWSER, "if-none-match": known})
        assert (reply.status, reply.body, reply.header("etag")) == (304, b"", tag)
    assert client.get("/", headers={**BROWSER, "if-none-match": '"other"'}).status == 200


def test_what_travels_is_packed_if_the_browser_can_unpack_it() -> None:
    client = Client()
    reply = client.get("/page/app.js", headers={"accept-encoding": "gzip, deflate, br"})
    assert reply.header("content-encoding") == "gzip"
    assert gzip.decompress(reply.body) == (WEB / "app.js").read_bytes()
    packed = [client.get(f"/page/{name}", headers={"accept-encoding": "gzip"}).body for name in FILES]
    assert sum(map(len, packed)) < MOST_BYTES_PACKED


def test_the_files_need_no_key_and_everything_else_still_does() -> None:
    client = Client(config=KEYED)
    assert page(client).status == 200
    assert client.get("/page/app.js").status == 200
    assert client.get("/").status == 401
    for path in ("/page/", "/page/nothing.js", "/page/../page/app.js", "/page/app.js/", "//page/app.js", "/page"):
        assert client.get(path, headers=BROWSER).status == 401
    assert client.request("POST", "/page/app.js").status == 401
    assert client.get("/v1/models", headers=BROWSER).status == 401


def test_below_a_root_path() -> None:
    client, below = Client(config=ServerConfig(root_path="/llm")), {"root_path": "/llm"}
    assert client.get("/llm/", headers=BROWSER, scope=below).header("content-type") == "text/html; charset=utf-8"
    assert client.get("/llm/page/app.js", scope=below).status == 200


def test_the_page_may_use_a_server_without_keys() -> None:
    """A page of the server's own is known by having the server's own name; that this name is local, others check."""
    host = {"host": "127.0.0.1:8080"}
    own = {**host, "origin": "http://127.0.0.1:8080"}
    assert Client().post("/v1/chat/completions", chat(), headers=own).status == 200
    behind_tls = {"host": "box.local", "origin": "https://box.local"}
    assert Client().post("/v1/chat/completions", chat(), headers=behind_tls).status == 200
    for origin in ("http://127.0.0.1:3000", "http://localhost:8080", "http://evil.example", "null", "127.0.0.1:8080"):
        assert Client().post("/v1/chat/completions", chat(), headers={**host, "origin": origin}).status == 403
    plain = {"host": "box.local", "origin": "http://box.local"}
    assert Client().post("/v1/chat/completions", chat(), headers=plain, scope={"scheme": "https"}).status == 403


def test_the_page_needs_nothing_from_elsewhere() -> None:
    """Every file it names is there, and it names no other place but by links in words."""
    index = (WEB / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="page/([^"]+)"', index)) <= set(FILES)
    assert "style=" not in index
    assert not re.search(r"\bon\w+=", index)
    assert not re.search(r"<script(?![^>]*\bsrc=)", index)
    for name in FILES:
        text = (WEB / name).read_text()
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= set(FILES)
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)[\w.]+", text.replace("https?://", ""))
        for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert unsafe not in text
    assert sum((WEB / name).stat().st_size for name in FILES) < MOST_BYTES


def test_the_files_are_in_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core")
    build = "import sys; from scikit_build_core.build import build_wheel; build_wheel(sys.argv[1], {settings})"
    without_kernels = {"wheel.cmake": "false", "wheel.py-api": ""}
    program = build.replace("{settings}", repr(without_kernels))
    root = Path(octavo.api.__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with ZipFile(wheel) as names:
        assert {f"octavo/api/web/{name}" for name in FILES} <= set(names.namelist())
