"""`octavo plan`: a verdict for people, a status for scripts, figures for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf_files import write_gguf
from qa.tiny_model import METADATA, tensors

from octavo import env
from octavo.cli.main import main


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(write_gguf(tmp_path / "tiny.gguf", metadata=METADATA, tensors=tensors()))


def test_a_model_that_fits(tiny: str, capsys) -> None:
    assert main(["plan", tiny, "--device", "cpu", "--kv-cache-memory", "8MiB", "--max-model-len", "4K"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tiny in ")
    assert "\nIt fits.\n" in text
    assert "4,096 tokens" in text
    assert text.count("at most about") == 4, "nothing is promised"
    assert "GB/s" in text


def test_figures_add_up(tiny: str, capsys) -> None:
    words = ["--device", "cpu", "--dtype", "float32", "--kv-cache-memory", "8MiB", "--no-speed", "--json"]
    assert main(["plan", tiny, *words, "--max-num-seqs", "7"]) == 0
    facts = json.loads(capsys.readouterr().out)
    memory = facts["memory"]
    assert facts["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    assert facts["kv_tokens"] * facts["kv_bytes_per_token"] == memory["kv_cache"] == 8 * 2**20
    assert memory["at_rest"] == memory["weights"] + memory["runtime"]
    assert memory["at_most"] == memory["at_rest"] + memory["workspace"] + memory["kv_cache"]
    assert facts["requests_at_once"] == {"256": 7, "512": 7, "2048": 7, "8192": 2}
    assert facts["speed"] is None


def test_a_model_that_does_not_fit(tmp_path: Path, capsys) -> None:
    config = {"model_type": "gpt2", "n_embd": 2**15, "n_layer": 1000, "n_head": 64, "vocab_size": 50, "n_positions": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["plan", str(tmp_path / "config.json"), "--load-format", "dummy", "--device", "cpu", "--no-speed"]) == 1
    assert "It does not fit: no room for the KV cache" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["org/name:q4.gguf", "smollm2-135m-instruct"])
def test_a_model_whose_header_is_not_here(tmp_path: Path, monkeypatch, capsys, name: str) -> None:
    monkeypatch.setattr(env, "CACHE_DIR", tmp_path)
    assert main(["plan", name, "--download-dir", str(tmp_path)]) == 1
    assert f"octavo pull {name} fetches it" in capsys.readouterr().err


def test_what_a_start_refuses_is_refused(tiny: str, capsys) -> None:
    for words in (
        ["--attention-backend", "flashinfer"],
        ["--kv-cache-dtype", "fp8"],
        ["--quantization", "int4"],
        ["--device", "rocm"],
    ):
        assert main(["plan", tiny, "--device", "cpu", "--no-speed", *words]) == 1
        refused = capsys.readouterr()
        assert " ".join(words) in refused.err.replace("'", "")
        assert not refused.out


def test_a_file_that_is_not_there(capsys) -> None:
    assert main(["plan", "./absent"]) == 1
    assert "'./absent': no such file or folder" in capsys.readouterr().err


def test_flags_are_those_of_serve(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--max-model-lne", "3"])
    assert "did you mean --max-model-len?" in capsys.readouterr().err
