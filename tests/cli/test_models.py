"""`octavo list`, `show`, `pull` and `rm`: what they print and what they leave."""

from __future__ import annotations

import json
import os
import pty
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf_files import write_gguf
from hub_copies import hub_copy, hub_server, safetensors_files
from terminals import on_a_terminal

from octavo import env
from octavo.checkpoint import embedded
from octavo.cli import display, pull
from octavo.cli.main import main


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(env, "CACHE_DIR", tmp_path / "octavo")
    return tmp_path / "hub"


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], object]]:
    """Somebody at a terminal, who types what it is called with."""
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield lambda text: os.write(master, text.encode())
    os.close(master)


def test_an_empty_list_says_what_to_do(cache: Path, capsys) -> None:
    assert main(["list", "--download-dir", str(cache)]) == 0
    assert "octavo pull fetches one" in capsys.readouterr().out
    assert main(["list", "--json", "--download-dir", str(cache)]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_list_names_what_can_be_typed(cache: Path, tmp_path: Path, capsys) -> None:
    hub_copy(cache, "org/ggufs", {"q8.gguf": write_gguf(tmp_path / "q8.gguf").read_bytes(), "bad.gguf": b"GGUFF"})
    hub_copy(cache, "org/dense", safetensors_files())
    assert main(["list", "--download-dir", str(cache)]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows["org/dense"][3:5] == ["safetensors", "F32"]
    assert rows["org/ggufs:q8.gguf"][3:5] == ["gguf", "F32"]
    assert "unreadable" in rows["org/ggufs:bad.gguf"]
    assert main(["list", "--json", "--download-dir", str(cache)]) == 0
    assert {entry["name"]: entry["complete"] for entry in json.loads(capsys.readouterr().out)} == dict.fromkeys(
        rows, True
    )


def test_show(cache: Path, tmp_path: Path, capsys) -> None:
    files = safetensors_files() | {"tokenizer_config.json": b'{"chat_template": "{{ messages }}"}'}
    hub_copy(cache, "org/dense", files)
    where = ["--download-dir", str(cache)]
    assert main(["show", "org/dense", *where]) == 0
    text = capsys.readouterr().out
    assert "LlamaForCausalLM (llama)" in text
    assert "128 tokens" in text
    assert main(["show", "org/dense", "--template", *where]) == 0
    assert capsys.readouterr().out == "{{ messages }}\n"
    assert main(["show", "org/dense", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 17
    path = write_gguf(tmp_path / "mine.gguf")
    assert main(["show", str(path), "--template"]) == 1
    assert "mine has no chat template" in capsys.readouterr().err
    assert main(["show", "org/dens", *where]) == 1
    assert "did you mean org/dense?" in capsys.readouterr().err


@pytest.mark.parametrize(("typed", "gone"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_rm_asks(cache: Path, typing: Callable[[str], object], capsys, typed: str, gone: bool) -> None:
    snapshot = hub_copy(cache, "org/dense", safetensors_files())
    typing(typed)
    assert main(["rm", "org/dense", "--download-dir", str(cache)]) == 0
    assert snapshot.exists() is not gone
    assert "delete org/dense (" in capsys.readouterr().err


def test_rm_without_anybody_to_ask(cache: Path, monkeypatch, capsys) -> None:
    snapshot = hub_copy(cache, "org/dense", safetensors_files())
    with open(os.devnull) as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        assert main(["rm", "org/dense", "--download-dir", str(cache)]) == 1
        assert snapshot.exists()
        assert main(["rm", "org/dense", "-y", "--download-dir", str(cache)]) == 0
    assert not snapshot.exists()
    assert "-y deletes without asking" in capsys.readouterr().err


def test_rm_deletes_nothing_if_one_name_is_wrong_nor_files_elsewhere(cache: Path, tmp_path: Path, capsys) -> None:
    snapshot = hub_copy(cache, "org/dense", safetensors_files())
    mine = write_gguf(tmp_path / "mine.gguf")
    assert main(["rm", "-y", "org/dense", str(mine), "--download-dir", str(cache)]) == 1
    assert snapshot.exists()
    assert mine.exists()


def test_pull_shows_how_far_it_is_on_a_terminal_only(cache: Path) -> None:
    with hub_server("org/name", safetensors_files()) as endpoint:
        variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", "COLUMNS": "60"}
        command = [sys.executable, "-m", "octavo.cli", "pull", "org/name"]
        shown = on_a_terminal(command, env={**os.environ, **variables}, columns=60)
    assert shown.status == 0, shown.text
    assert "org/name: safetensors, " in shown.text
    assert "name   0%" in shown.text
    assert "left" in shown.text


def test_ctrl_c_ends_a_pull(cache: Path) -> None:
    program = (
        "import sys, threading, time\n"
        "from octavo.checkpoint import store\n"
        "from octavo.cli.main import main\n"
        "def slowly(name, *, report, **_):\n"
        "    print('begun', flush=True)\n"
        "    while True:\n"
        "        report((1, 2)); time.sleep(0.01)\n"
        "store.pull = slowly\n"
        "sys.exit(main(['pull', 'org/name']))"
    )
    shown = on_a_terminal([sys.executable, "-c", program], [("begun", "\x03")])
    assert shown.status == 130
    assert "the same command fetches the rest" in shown.text


def test_a_narrow_terminal_keeps_names_whole(cache: Path) -> None:
    name = f"org/{'long' * 7}"
    hub_copy(cache, name, safetensors_files())
    command = [sys.executable, "-m", "octavo.cli", "list", "--download-dir", str(cache)]
    for columns, seen in ((50, False), (120, True)):
        variables = {**os.environ, "OCTAVO_CACHE": str(cache), "COLUMNS": str(columns)}
        text = on_a_terminal(command, columns=columns, env=variables).text
        assert name in text
        assert ("MODIFIED" in text) is seen
        assert max(map(len, text.splitlines())) <= columns + len("\x1b[2m\x1b[0m")


def test_the_bar_counts_up(capsys) -> None:
    with display.Bar("x") as bar:
        bar.report((5, 10))
    assert capsys.readouterr().err == "", "no terminal, no bar"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_949, "9.9 kB"), (98_362_432, "98 MB"), (999_600, "1.0 MB")],
)
def test_sizes(count: int, text: str) -> None:
    assert display.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "just now"), (1, "1 second ago"), (7300, "2 hours ago")])
def test_ages(seconds: float, text: str) -> None:
    assert display.ago(seconds) == text


def test_embedded_models_have_their_place(cache: Path, capsys) -> None:
    path = embedded.path_of(embedded.DEFAULT)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    assert main(["list", "--download-dir", str(cache)]) == 0
    assert "incomplete" in capsys.readouterr().out
    assert pull.DESCRIPTION.endswith("SmolLM2-135M-Instruct")
