"""Many models in one real server: room, waiting, deaths, and versions that change again and again under load."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from many_models import SETTINGS, Callers, many_models, write_model

pytestmark = pytest.mark.qa

MIB = 1 << 20


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [write_model(folder / f"{seed}.gguf", seed) for seed in (1, 2, 3)]


def on_demand(names: str, sources: list[Path]) -> str:
    return "".join(
        f"[models.{name}]\nsource = '{source}'\npreload = false\n{SETTINGS}"
        for name, source in zip(names, sources, strict=False)
    )


def test_twenty_who_wait_cause_one_load(tmp_path, sources) -> None:
    with many_models(tmp_path, on_demand("a", sources)) as server:
        texts: list[str] = []
        threads = [threading.Thread(target=lambda: texts.append(server.ask("a"))) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(texts) == 20
        assert len(set(texts)) == 1
        assert server.said("a:1 is being loaded") == 1


def test_the_least_recently_used_makes_room_under_a_budget(tmp_path, sources) -> None:
    with many_models(tmp_path, on_demand("abc", sources)) as server:
        server.ask("a")
        (needs,) = (version["memory"] for version in server.models()["a"].values())
    folder = tmp_path / "budget"
    folder.mkdir()
    budget = f"[server]\nmemory_budget = {2 * needs + MIB}\n"
    with many_models(folder, budget + on_demand("abc", sources)) as server:
        first = {name: server.ask(name) for name in "abab"}
        first["c"] = server.ask("c")
        assert [server.states(name)[1] for name in "abc"] == ["declared", "ready", "ready"]
        assert server.cores() == 2
        for name in "cabcab":  # each turn the one that is needed had to go
            assert server.ask(name) == first[name]
            assert server.cores() <= 2
    folder = tmp_path / "little"
    folder.mkdir()
    with many_models(folder, f"[server]\nmemory_budget = {needs - MIB}\n" + on_demand("a", sources)) as server:
        reply = server.web.post("/v1/completions", json={"model": "a", "prompt": "x"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_failed")
        assert "memory_budget" in server.models()["a"][1]["reason"]


def test_a_core_that_is_killed_is_its_own_models_trouble(tmp_path, sources) -> None:
    declaration = "".join(
        f"[models.{name}]\nsource = '{source}'\n{SETTINGS}" for name, source in zip("ab", sources, strict=False)
    )
    with many_models(tmp_path, declaration) as server:
        expected = {name: server.ask(name) for name in "ab"}
        with Callers(server, "a", 3) as of_a, Callers(server, "b", 3) as of_b:
            of_a.until_heard(expected["a"])
            of_b.until_heard(expected["b"])
            children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
            server.until(lambda: server.said("starting another engine process") == 1, "nobody noticed the death")
            of_a.until_heard(expected["a"])
            of_b.until_heard(expected["b"])
        assert of_a.failures == of_b.failures == []
        assert set(of_a.texts) == {expected["a"]}
        assert set(of_b.texts) == {expected["b"]}


def test_versions_change_again_and_again_under_load(tmp_path, sources) -> None:
    def declaration(version: int) -> str:
        tables = "".join(f"[models.a.versions.{n}]\nsource = '{path}'\n" for n, path in enumerate(sources, 1))
        return f"[models.a]\nversion_policy = {{specific = [{version}]}}\n{SETTINGS}{tables}"

    with many_models(tmp_path, declaration(1)) as server:
        said = {1: server.ask("a")}
        with Callers(server, "a", 6) as callers:
            for version in (2, 3, 1, 3, 2, 1):
                server.declare(declaration(version))
                server.until(lambda wanted=version: server.states("a")[wanted] == "ready", f"no version {version}")
                server.until(lambda: server.cores() == 1, "the version before never ended")
                callers.until_heard(said.setdefault(version, server.ask("a")))
        assert callers.failures == []
        assert set(callers.texts) == set(said.values())
        assert len(set(said.values())) == 3


def test_a_signal_under_load_ends_all_engines(tmp_path, sources) -> None:
    with many_models(tmp_path, on_demand("ab", sources)) as server:
        with Callers(server, "a", 2) as of_a, Callers(server, "b", 2) as of_b:
            of_a.until_heard(server.ask("a"))
            of_b.until_heard(server.ask("b"))
            os.kill(server.process.pid, signal.SIGTERM)
            assert server.process.wait(60) == 0
        cut = [failure for failure in of_a.failures + of_b.failures if "shutting" not in failure]
        assert all("Connect" in failure or "Remote" in failure or "Read" in failure for failure in cut), cut
