"""The verbs, and how people who mistype them are helped. Nothing heavy is loaded on the way."""

from __future__ import annotations

import subprocess
import sys

import pytest

from octavo import __version__
from octavo.cli.main import VERBS, main

HEAVY = "{'torch', 'numpy', 'starlette', 'uvicorn', 'httpx', 'jinja2', 'tokenizers', 'tqdm'}"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb(words, capsys) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in VERBS)


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"octavo {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sevre"], "there is no verb 'sevre'; did you mean serve?"),
        (["bnech"], "there is no verb 'bnech'; did you mean bench?"),
        (["xyz"], "there is no verb 'xyz'"),
        (["bench", "latencie"], "there is no verb 'bench latencie'; did you mean bench latency?"),
        (["--port", "1"], "there is no verb '--port'"),
    ],
)
def test_a_mistyped_verb(words, message, capsys) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"octavo: {message}\n(see octavo --help)\n"


def test_bench_alone_lists_its_verbs(capsys) -> None:
    assert main(["bench"]) == main(["bench", "--help"]) == 0
    assert "bench latency" in (text := capsys.readouterr().out)
    assert "  serve " not in text
    assert "octavo bench serve --base-url" in text
    assert "octavo run" not in text


@pytest.mark.parametrize("module", ["octavo", "octavo.cli"])
def test_as_a_module(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == f"octavo {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*verb.split(), "--help"])
    assert caught.value.code == 0
    assert f"usage: octavo {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["serve", "--help"], ["bench", "serve", "--help"]])
def test_nothing_heavy_is_loaded_to_help(words) -> None:
    code = (
        "import sys\nfrom octavo.cli.main import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        f"assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_errors_are_one_line(capsys) -> None:
    assert main(["serve", "/nothing/here.gguf", "--port", "0", "--block-size", "3"]) == 1
    assert capsys.readouterr().err == "octavo: block_size must be a power of two\n"
