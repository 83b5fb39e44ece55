"""A real server whose models change under load: no caller notices more than another text."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "qa"))
from many_models import SETTINGS, Callers, many_models, write_model


def test_versions_come_and_go_back_under_load_and_a_broken_one_changes_nothing(tmp_path) -> None:
    sources = [write_model(tmp_path / f"{seed}.gguf", seed) for seed in (1, 2)]
    broken = tmp_path / "3.gguf"
    broken.write_bytes(sources[0].read_bytes()[:5000])

    def declaration(*versions: Path) -> str:
        tables = "".join(f"[models.a.versions.{n}]\nsource = '{path}'\n" for n, path in enumerate(versions, 1))
        return f"[models.a]\n{SETTINGS}{tables}"

    with many_models(tmp_path, declaration(sources[0])) as server:
        one = server.ask("a")
        with Callers(server, "a", 4) as callers:
            callers.until_heard(one)
            server.declare(declaration(*sources))
            server.until(lambda: server.states("a") == {1: "declared", 2: "ready"}, "version 2 never took over")
            two = server.ask("a")
            callers.until_heard(two)
            assert server.cores() == 1
            assert server.web.post("/v1/admin/models/a/rollback").status_code == 200
            server.until(lambda: server.states("a") == {1: "ready", 2: "declared"}, "version 1 never came back")
            callers.until_heard(one)
            server.declare(declaration(*sources, broken))
            server.until(lambda: server.states("a").get(3) == "failed", "the broken version never failed")
            callers.until_heard(one)
            assert server.web.get("/ready").status_code == 200
            server.declare("[models.a]\nsource = 3\n")
            server.until(lambda: server.said("the models stay as they were") == 1, "the mistake was never named")
            callers.until_heard(one)
        assert callers.failures == []
        assert one != two
        assert set(callers.texts) == {one, two}
        assert server.models()["a"][3]["reason"]
