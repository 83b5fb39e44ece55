"""The dashboard that is shipped asks for nothing that the server does not tell."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.api.traffic import Traffic
from octavo.config import CacheConfig
from octavo.metrics import Metrics
from octavo.plan import Capacity

ROOT = Path(__file__).parent.parent
DASHBOARD = json.loads((ROOT / "deploy/grafana/octavo.json").read_text())
NAME = re.compile(r"\b(?:vllm|octavo):\w+|\bprocess_\w+")
BY = re.compile(r"by \(([^)]*)\)")
FROM_PROMETHEUS = {"job", "instance"}  # labels that it adds


def queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from (each["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query")


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """Of every name that a server tells."""
    metrics, traffic = Metrics("m", longest=100), Traffic()
    metrics.describe_cache(CacheConfig(), Capacity(num_blocks=7, block_size=16, max_model_len=100, vocab_size=9))
    metrics.spend(1.0, 1.0)
    metrics.watch(os.getpid())
    traffic.count("/live", 200, "complete")
    traffic.spend("k", prompt_tokens=1, cached_tokens=0, output_tokens=1, compute_seconds=1.0, energy_joules=1.0)
    found: dict[str, set[str]] = {}
    for source in (metrics, traffic):
        for sample in (sample for family in source.families() for sample in family.samples):
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("query", sorted(set(queries())))
def test_every_query_names_what_exists(query: str, labels: dict[str, set[str]]) -> None:
    names = NAME.findall(query)
    assert names
    assert set(names) <= labels.keys()
    grouped = {label.strip() for group in BY.findall(query) for label in group.split(",")}
    selected = set(re.findall(r"[{,]\s*(\w+)\s*=~?", query))
    assert grouped | selected <= set.union(FROM_PROMETHEUS, *(labels[name] for name in names))
    assert query.count("(") == query.count(")")


def test_the_document_names_what_exists(labels: dict[str, set[str]]) -> None:
    """Histograms by the name of their family."""
    known = labels.keys() | {name.removesuffix("_bucket") for name in labels}
    named = set(NAME.findall((ROOT / "docs/observability.md").read_text()))
    assert len(named) > 40
    assert named <= known
    own = {name for name in known if name.startswith("octavo:")}
    assert own <= named, "what octavo adds is explained"


def test_panels_do_not_lie_upon_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
