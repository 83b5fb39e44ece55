"""What files, folders and flags declare, and what is said of those that are wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from octavo.config import EngineConfig, RepositoryConfig
from octavo.errors import ConfigError
from octavo.repository.declared import Declared, of_flags, parse_seconds, read_file, read_folder
from octavo.repository.watching import Watch

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
NO_FLAGS = RepositoryConfig()


def read(tmp_path: Path, text: str, **defaults: Any) -> Declared:
    path = tmp_path / "octavo.toml"
    path.write_text(text)
    return read_file(path, NO_FLAGS, defaults)


def test_the_documents_example_is_what_it_says(tmp_path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    declared = read(tmp_path, example, max_num_seqs=32)
    assert (declared.memory_budget, declared.max_loaded_models, declared.only) == (16 << 30, 4, False)
    chat, small = declared.models.values()
    assert chat.route().shares == ((1, 95), (2, 5))
    assert chat.route().labels == {"stable": 1, "canary": 2}
    assert (chat.aliases, chat.keep_alive, chat.preload) == (("gpt-4o",), None, True)
    assert [config.model.max_model_len for config in chat.versions.values()] == [None, 8192]
    assert {config.cache.kv_cache_memory for config in chat.versions.values()} == {4 << 30}
    assert {config.model.served_model_name for config in chat.versions.values()} == {("chat",)}
    assert chat.versions[2].scheduler.max_num_seqs == 32
    assert (small.versions[1].model.model, small.keep_alive, small.preload) == ("SmolLM2-135M-Instruct", 300.0, False)


@pytest.mark.parametrize(
    ("policy", "served", "loaded"),
    [
        ('"latest"', 3, (3,)),
        ('"all"', 3, (1, 2, 3)),
        ("{latest = 2}", 3, (2, 3)),
        ("{specific = [2, 1]}", 2, (1, 2)),
        ('"latest"\ntraffic = {1 = 1, 2 = 0}', 1, (1,)),
        ('"all"\ntraffic = {1 = 1}', 1, (1, 2, 3)),
        ('"latest"\nlabels = {old = 1}', 3, (1, 3)),
    ],
)
def test_policies(tmp_path, policy: str, served: int, loaded: tuple[int, ...]) -> None:
    versions = "".join(f"[models.a.versions.{number}]\nsource = 'm{number}'\n" for number in (1, 2, 3))
    route = read(tmp_path, f"[models.a]\nversion_policy = {policy}\n{versions}").models["a"].route()
    assert (route.main, route.versions) == (served, loaded)


def test_paths_are_meant_from_where_the_file_is(tmp_path) -> None:
    (tmp_path / "here.gguf").touch()
    text = "[models.a]\nsource = 'here.gguf'\n[models.b]\nsource = 'org/name'\n[models.c]\nsource = '/no/such'\n"
    sources = [model.versions[1].model.model for model in read(tmp_path, text).models.values()]
    assert sources == [str(tmp_path / "here.gguf"), "org/name", "/no/such"]


MODEL = "[models.a]\nsource = 'x'\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it declares no model"),
        ("nonsense [", "octavo.toml: "),
        ("[model.a]\nsource = 'x'\n", "there is no 'model'; did you mean models?"),
        (
            MODEL + "kv_cache_mem = '1GiB'\n",
            "model a: there is no 'kv_cache_mem'; did you mean kv_cache_memory? There may be: alias",
        ),
        (MODEL + "model = 'y'\n", "model a: there is no 'model'"),
        (MODEL + "kv_cache_memory = 'much'\n", "model a: version 1: kv_cache_memory: 'much' is not a number"),
        (MODEL + "block_size = 17\n", "model a: version 1: block_size must be a power of two"),
        (MODEL + "keep_alive = 'soon'\n", "model a: keep_alive must be a time such as"),
        (MODEL + "labels = {best = 2}\n", "model a: labels names version 2; declared are 1"),
        (MODEL + "labels = {latest = 1}\n", "model a: 'latest' cannot be a label"),
        (MODEL + "traffic = {1 = 0}\n", "model a: traffic gives no version a share"),
        (MODEL + "traffic = {x = 1}\n", "model a: Expected `int`, got `str`"),
        (MODEL + "traffic = {1 = -1}\n", "model a: Expected `int` >= 0"),
        (MODEL + "version_policy = 'newest'\n", "model a: version_policy must be"),
        (MODEL + "version_policy = {specific = [2]}\n", "model a: version_policy names version 2"),
        (MODEL + "versions = {2 = {source = 'y'}}\n", "model a: it needs a source, or versions with a source each"),
        ("[models.a]\n", "model a: it needs a source, or versions"),
        ("[models.a.versions.1]\n", "model a: version 1: it needs a source"),
        ("[models.a.versions.0]\nsource = 'x'\n", "model a: Expected `int` >= 1"),
        ("[models.a.versions.1]\nsource = 'x'\nports = 1\n", "model a: version 1: there is no 'ports'"),
        (MODEL + "aliases = ['b']\n[models.b]\nsource = 'y'\n", "the name b is given to a and to b"),
        (MODEL + "aliases = ['b:c']\n", "'b:c' cannot be a model's name"),
        (MODEL + "[server]\nport = 9000\n", "[server]: Object contains unknown field `port`"),
        (MODEL + "[server]\nmemory_budget = '-1GiB'\n", "memory_budget must be at least 1"),
        ("models = 3\n", "it declares no model"),
        ("[models]\na = 3\n", "model a: it must be a table"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert complaint in caught.value.message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5m", 300.0), ("90s", 90.0), ("1.5h", 5400.0), ("100ms", 0.1), (0, 0.0), ("0", 0.0), (-1, None), ("-1", None)],
)
def test_times(value: Any, seconds: float | None) -> None:
    assert parse_seconds(value) == seconds


def test_one_model_has_the_name_that_its_checkpoint_will_have(tmp_path) -> None:
    (tmp_path / "my model.gguf").touch()
    names = {
        None: "SmolLM2-135M-Instruct",
        str(tmp_path / "my model.gguf"): "my model",
        "gemma-3-270M": "gemma-3-270M",
        "org/name": "org/name",
    }
    for source, name in names.items():
        assert list(of_flags(EngineConfig.of(model=source)).models) == [name]
    named = of_flags(EngineConfig.of(served_model_name=("a", "b"))).models["a"]
    assert named.aliases == ("b",)


def make_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "weights.gguf").touch()


def test_a_folder_of_models(tmp_path) -> None:
    for place in ("a/1", "a/10", "a/9", "b", ".hidden"):
        make_model(tmp_path / place)
    (tmp_path / "a" / "11").mkdir()  # being copied: nothing to serve yet
    (tmp_path / "a" / "notes").mkdir()
    (tmp_path / "c.gguf").touch()
    (tmp_path / "README.md").touch()
    flags = RepositoryConfig(model_repository=str(tmp_path), keep_alive="5m", preload=False, memory_budget=5)
    declared = read_folder(tmp_path, flags, {"max_num_seqs": 3})
    assert {name: list(model.versions) for name, model in declared.models.items()} == {
        "a": [1, 9, 10],
        "b": [1],
        "c": [1],
    }
    a = declared.models["a"]
    assert a.route().main == 10
    assert a.versions[10].model.model == str(tmp_path / "a" / "10")
    assert (a.keep_alive, a.preload, declared.memory_budget) == (300.0, False, 5)
    assert a.versions[1].scheduler.max_num_seqs == 3
    with pytest.raises(ConfigError, match="holds no model"):
        read_folder(tmp_path / "a" / "notes", flags, {})
    with pytest.raises(ConfigError, match="cannot read the folder"):
        read_folder(tmp_path / "nowhere", flags, {})


def test_a_file_is_read_again_when_it_changes_and_only_if_it_is_right(tmp_path, caplog) -> None:
    path = tmp_path / "octavo.toml"
    path.write_text(MODEL)
    watch = Watch(path, lambda: read_file(path, NO_FLAGS, {}))
    assert watch.look() is None
    path.write_text(MODEL + "[models.b]\nsource = 'y'\n")
    assert watch.look() is None, "more may be written yet"
    changed = watch.look()
    assert changed is not None
    assert list(changed.models) == ["a", "b"]
    path.write_text(MODEL + "port = 3\n")
    for _ in range(2):
        assert watch.look() is None
    assert "the models stay as they were" in caplog.text
    assert "there is no 'port'" in caplog.text
    assert watch.look() is None
    assert caplog.text.count("stay as they were") == 1


def test_a_folder_is_looked_into_when_it_has_come_to_rest(tmp_path) -> None:
    make_model(tmp_path / "a" / "1")
    watch = Watch(tmp_path, lambda: read_folder(tmp_path, NO_FLAGS, {}))
    make_model(tmp_path / "a" / "2")
    assert watch.look() is None
    (tmp_path / "a" / "2" / "weights.gguf").write_bytes(b"more")
    assert watch.look() is None
    changed = watch.look()
    assert changed is not None
    assert list(changed.models["a"].versions) == [1, 2]
    assert watch.look() is None


def test_a_link_that_leads_nowhere_hides_nothing_else(tmp_path) -> None:
    make_model(tmp_path / "a" / "1")
    (tmp_path / "a" / "1" / "lost").symlink_to("nowhere")
    (tmp_path / "b.gguf").symlink_to("nowhere")
    watch = Watch(tmp_path, lambda: read_folder(tmp_path, NO_FLAGS, {}))
    assert list(watch.declared.models) == ["a"]
    make_model(tmp_path / "a" / "2")
    assert watch.look() is None
    changed = watch.look()
    assert changed is not None
    assert list(changed.models["a"].versions) == [1, 2]
