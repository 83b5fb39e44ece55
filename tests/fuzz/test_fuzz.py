"""Every kept input, and a few hundred new ones; `make fuzz SECONDS=n` goes on for longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_files import TARGETS as FILES
from fuzz_lines import TARGETS as LINES
from fuzz_wire import TARGETS as WIRE
from hypothesis import HealthCheck, given, settings
from target import CORPUS, Target

TARGETS = {target.name: target for target in (*FILES, *LINES, *WIRE)}
SETTINGS = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
KEPT = [path for target in TARGETS.values() for path in target.kept()]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_kept_inputs(path: Path) -> None:
    TARGETS[path.parent.name].check(path.read_bytes())


def test_the_corpus_belongs_to_targets() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} <= TARGETS.keys()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_new_inputs(target: Target) -> None:
    @settings(SETTINGS, max_examples=target.examples)
    @given(target.inputs)
    def attempt(data: bytes) -> None:
        target.check(data)

    attempt()
