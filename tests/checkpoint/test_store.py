"""What is on this machine: listed, found, fetched from a hub, removed without touching anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_files import LLAMA, write_gguf
from hub_copies import COMMIT, WEIGHTS, hub_copy, hub_server, safetensors_files

from octavo import env
from octavo.checkpoint import embedded, store
from octavo.checkpoint.description import describe
from octavo.errors import CheckpointError, ModelNotFound


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "CACHE_DIR", tmp_path / "octavo")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def a_gguf(tmp_path: Path, **metadata: object) -> bytes:
    return write_gguf(tmp_path / "made.gguf", metadata={**LLAMA, **metadata}).read_bytes()


def names(cache: Path) -> set[str]:
    return {model.name for model in store.stored(cache)}


def test_an_empty_machine(cache: Path) -> None:
    assert store.stored(cache) == []
    with pytest.raises(ModelNotFound, match=r"'org/name' is not on this machine .*octavo list"):
        store.get("org/name", cache)


def test_each_gguf_file_is_a_model_and_safetensors_are_one(cache: Path, tmp_path: Path) -> None:
    gguf = a_gguf(tmp_path)
    hub_copy(cache, "org/name", safetensors_files())
    hub_copy(cache, "org/ggufs", {"q4.gguf": gguf, "big/q8.gguf": gguf + b"x", "mmproj-q4.gguf": b"no model"})
    hub_copy(cache, "org/tokenizer", {"config.json": b"{}", "tokenizer.json": b"{}"})
    assert names(cache) == {"org/name", "org/ggufs:q4.gguf", "org/ggufs:big/q8.gguf"}
    model = store.get("org/name", cache)
    assert (model.format, model.digest, model.complete) == ("safetensors", COMMIT, True)
    assert model.size == sum(map(len, safetensors_files().values()))
    assert store.get("org/ggufs:q4.gguf", cache).size == len(gguf)


def test_names_that_mean_a_model(cache: Path, tmp_path: Path) -> None:
    hub_copy(cache, "org/Name", {"q4.gguf": a_gguf(tmp_path)})
    for typed in ("org/Name:q4.gguf", "org/Name/q4.gguf", "ORG/name:Q4.gguf"):
        found = store.find(typed, cache)
        assert found is not None
        assert found.name == "org/Name:q4.gguf"
    for nearly in ("org/Name", "name", "org/nmae:q4.gguf"):
        with pytest.raises(ModelNotFound, match=r"did you mean org/Name:q4\.gguf\?"):
            store.get(nearly, cache)
    with pytest.raises(ModelNotFound, match="'mistral' is not on this machine \\("):
        store.get("mistral", cache)


@pytest.mark.parametrize("typed", ["smolm2", "SMOLLM2", "smollm2-135", "org/SmolLM2-135M-Instuct"])
def test_what_people_remember_of_a_name_is_enough_to_be_reminded(cache: Path, typed: str) -> None:
    hub_copy(cache, "org/SmolLM2-135M-Instruct", safetensors_files())
    hub_copy(cache, "org/other", safetensors_files())
    with pytest.raises(ModelNotFound, match=r"did you mean org/SmolLM2-135M-Instruct\?"):
        store.get(typed, cache)


@pytest.mark.parametrize("typed", ["llama3.2", "llama", "qwen3", "phi-4"])
def test_another_model_is_not_taken_for_one_that_is_here(cache: Path, typed: str) -> None:
    hub_copy(cache, "org/SmolLM2-135M-Instruct", safetensors_files())
    with pytest.raises(ModelNotFound, match="is not on this machine \\(octavo list"):
        store.get(typed, cache)


def test_a_download_that_was_cut_short_is_seen(cache: Path) -> None:
    index = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    files = safetensors_files() | {"model.safetensors.index.json": index, "one.safetensors": WEIGHTS}
    del files["model.safetensors"]
    hub_copy(cache, "org/shards", files)
    bare = hub_copy(cache, "org/begun", {"config.json": b"{}"})
    (bare.parent.parent / "blobs" / "abc.incomplete").write_bytes(b"...")
    assert {model.name: model.complete for model in store.stored(cache)} == {"org/shards": False, "org/begun": False}


def test_embedded_models_are_listed_and_removed(cache: Path) -> None:
    path = embedded.path_of(embedded.DEFAULT)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut short")
    (model,) = store.stored(cache)
    assert (model.name, model.source, model.complete) == ("SmolLM2-135M-Instruct", "embedded", False)
    assert store.find("smollm2-135m-instruct", cache) == model
    assert store.remove(model, cache) == len(b"cut short")
    assert store.stored(cache) == []


def test_removing_a_repository_leaves_the_others(cache: Path) -> None:
    first, second = (hub_copy(cache, repo, safetensors_files()) for repo in ("org/one", "org/two"))
    locks = cache / ".locks" / "models--org--one"
    locks.mkdir(parents=True)
    freed = store.remove(store.get("org/one", cache), cache)
    assert freed > len(WEIGHTS)
    assert not first.parent.parent.exists()
    assert not locks.exists()
    assert (second / "model.safetensors").read_bytes() == WEIGHTS


def test_removing_one_model_of_a_repository_leaves_what_the_others_need(cache: Path, tmp_path: Path) -> None:
    gguf = a_gguf(tmp_path)
    files = safetensors_files() | {"a.gguf": gguf, "same.gguf": gguf, "b.gguf": gguf + b"x"}
    snapshot = hub_copy(cache, "org/name", files)
    assert store.remove(store.get("org/name:b.gguf", cache), cache) >= len(gguf)
    assert store.remove(store.get("org/name:a.gguf", cache), cache) < len(gguf), "same.gguf needs the blob"
    assert names(cache) == {"org/name", "org/name:same.gguf"}
    store.remove(store.get("org/name", cache), cache)
    assert names(cache) == {"org/name:same.gguf"}
    assert (snapshot / "same.gguf").read_bytes() == gguf
    store.remove(store.get("org/name:same.gguf", cache), cache)
    assert not snapshot.parent.parent.exists()


def test_every_snapshot_of_a_file_is_removed(cache: Path, tmp_path: Path) -> None:
    gguf = a_gguf(tmp_path)
    for commit in ("1" * 40, "2" * 40):
        hub_copy(cache, "org/name", {"a.gguf": gguf, "b.gguf": gguf + b"x"}, commit)
    store.remove(store.get("org/name:a.gguf", cache), cache)
    assert not list(cache.rglob("a.gguf"))


def test_nothing_outside_the_cache_is_removed(cache: Path, tmp_path: Path) -> None:
    elsewhere = hub_copy(tmp_path / "mine", "org/name", safetensors_files())
    cache.mkdir()
    (cache / "models--org--name").symlink_to(tmp_path / "mine" / "models--org--name")
    with pytest.raises(CheckpointError, match="leads out of the cache"):
        store.remove(store.get("org/name", cache), cache)
    assert (elsewhere / "model.safetensors").is_file()

    precious = tmp_path / "precious"
    precious.write_bytes(WEIGHTS)
    snapshot = hub_copy(cache, "org/linked", {"config.json": b"{}"})
    (snapshot / "model.safetensors").symlink_to(precious)
    (snapshot / "folder").symlink_to(tmp_path / "mine")
    store.remove(store.get("org/linked", cache), cache)
    assert precious.is_file()
    assert (elsewhere / "model.safetensors").is_file()


def test_opening_asks_no_network(cache: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "mine.gguf")
    assert store.open_here(str(path), cache).name == "mine"
    snapshot = hub_copy(cache, "org/name", safetensors_files())
    opened = store.open_here("org/name", cache)
    assert (opened.name, opened.path, opened.format) == ("org/name", snapshot, "safetensors")
    with pytest.raises(ModelNotFound):
        store.open_here("", cache)


def test_a_description_counts_the_tensors(cache: Path, tmp_path: Path) -> None:
    card = b"---\nlanguage: en\nlicense: mit\n---\nlicense: none\n"
    files = safetensors_files() | {"README.md": card, "tokenizer_config.json": b'{"chat_template": "{{ 1 }}"}'}
    hub_copy(cache, "org/name", files | {"generation_config.json": b'{"temperature": 0.5}'})
    told = describe(store.open_here("org/name", cache))
    assert (told.parameters, told.quantization, told.context, told.layers) == (17, "F32", 128, 1)
    assert [(kind.type, kind.tensors, kind.parameters, kind.bytes) for kind in told.kinds] == [
        ("F32", 1, 12, 48),
        ("F16", 1, 5, 10),
    ]
    assert (told.template, told.license, told.sampling) == ("{{ 1 }}", "mit", {"temperature": 0.5})

    metadata = {"general.file_type": 15, "general.license": "apache-2.0", "tokenizer.chat_template": "{{ 2 }}"}
    gguf = describe(store.open_here(str(write_gguf(tmp_path / "m.gguf", metadata={**LLAMA, **metadata})), cache))
    assert (gguf.quantization, gguf.license, gguf.template) == ("Q4_K_M", "apache-2.0", "{{ 2 }}")
    assert (gguf.parameters, gguf.family, gguf.architecture) == (300 * 64 + 64, "llama", "LlamaForCausalLM")
    assert gguf.size == (tmp_path / "m.gguf").stat().st_size


PULL = """
import json, sys
from pathlib import Path
from octavo.checkpoint import store
from octavo.errors import OctavoError
seen = []
try:
    model = store.pull(sys.argv[1], cache=Path(sys.argv[2]), report=seen.append)
    print(json.dumps([model.name, model.complete, *seen[-1:]]))
except OctavoError as error:
    print(json.dumps(error.message))
"""


def pull(name: str, cache: Path, endpoint: str, offline: str = "0") -> object:
    """In a process of its own: the hub's library reads its address when it is imported."""
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "OCTAVO_OFFLINE": offline, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", PULL, name, str(cache)]
    done = subprocess.run(command, env=variables, capture_output=True, timeout=60, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_pulling_from_a_hub(cache: Path, tmp_path: Path) -> None:
    gguf = a_gguf(tmp_path)
    files = safetensors_files() | {"q4.gguf": gguf, "pickle.bin": b"code", "README.md": b"hi"}
    with hub_server("org/name", files) as endpoint:
        name, complete, progress = pull("org/name", cache, endpoint)
        assert (name, complete) == ("org/name", True)
        assert progress[0] == progress[1] == sum(map(len, safetensors_files().values())) + len(b"hi")
        assert names(cache) == {"org/name"}, "neither GGUF files nor pickles were asked for"
        assert pull("org/name:q4.gguf", cache, endpoint)[:2] == ["org/name:q4.gguf", True]
        assert "org/name has no file other.gguf" in str(pull("org/name:other.gguf", cache, endpoint))
        assert "there is no such model, or it is private" in str(pull("org/absent", cache, endpoint))
    assert pull("org/name", cache, endpoint, offline="1")[:2] == ["org/name", True], "what is here needs no hub"
    assert "OCTAVO_OFFLINE=1 forbids asking" in str(pull("org/new", cache, endpoint, offline="1"))
    assert "the hub cannot be reached; check the network" in str(pull("org/new", cache, endpoint))
    assert "is not the form of a hub id" in str(pull("./here", cache, endpoint))
    assert "names of Ollama's library are no hub ids" in str(pull("llama3.2:1b", cache, endpoint))


def test_a_name_without_an_owner_may_be_meant_as_ollamas(cache: Path) -> None:
    with hub_server("org/name", safetensors_files()) as endpoint:
        assert "names of Ollama's library are no hub ids" in str(pull("nonsense", cache, endpoint))
        assert "Ollama" not in str(pull("org/nonsense", cache, endpoint))
