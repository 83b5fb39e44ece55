"""What Tab offers: asked of a real shell, with a program named octavo that knows two models."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from octavo.checkpoint import store
from octavo.cli.completion import verbs
from octavo.cli.main import VERBS, main

MODELS = ("org/name:q4.gguf", "org/name:q8.gguf", "SmolLM2-135M-Instruct")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "octavo"
    program.write_text(f"#!/bin/sh\ntest \"$1 $2\" = 'completion models' && printf '%s\\n' {' '.join(MODELS)}\n")
    program.chmod(0o755)
    return folder


def tab(script: Path, typed: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["completion", "bash"]) == 0
    ask = f"\nCOMP_LINE={typed!r}; COMP_POINT=${{#COMP_LINE}}; _octavo; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    done = subprocess.run(
        [bash, "-c", capsys.readouterr().out + ask],
        env={"PATH": f"{script}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("octavo p", ["pull", "ps", "plan"]),
        ("octavo bench ", ["latency", "throughput", "serve"]),
        ("octavo bench la", ["latency"]),
        ("octavo keys n", ["new"]),
        ("octavo serve --max-model", ["--max-model-len"]),
        ("octavo serve --load-format s", ["safetensors"]),
        ("octavo bench serve --max-c", ["--max-concurrency"]),
        ("octavo bench serve --load-f", []),
        ("octavo run Smol", ["SmolLM2-135M-Instruct"]),
        ("octavo rm -y SmolLM2-135M-Instruct org", ["org/name:q4.gguf", "org/name:q8.gguf"]),
        ("octavo show org/name:q", ["q4.gguf", "q8.gguf"]),
        ("octavo ps org", []),
        ("octavo serve --api-key-file ", []),
        ("octavo completion ", ["-h", "--help", "bash", "zsh", "fish"]),
        ("octavo nonsense ", []),
    ],
)
def test_tab_in_bash(script: Path, typed: str, offered: list[str], capsys) -> None:
    assert sorted(tab(script, typed, capsys)) == sorted(offered)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_know_every_verb_and_flag(shell: str, capsys) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for name in VERBS for verb in name.split())
    dashes = "--" if shell == "zsh" else "-l "
    assert all(
        f"{dashes}{name.removeprefix('--')}" in text
        for verb in verbs()
        for flag in verb.flags
        for name in flag.names
        if name.startswith("--")
    )
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n"], input=text, text=True, check=True, timeout=30)


def test_models_are_those_that_are_here(monkeypatch, capsys) -> None:
    monkeypatch.setattr(store, "stored", list)
    assert main(["completion", "models"]) == 0
    assert capsys.readouterr().out.strip() == ""
