"""Every kept input, and a few hundred new ones; `make fuzz SECONDS=n` goes on for longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_files import TARGETS as FILES
from fuzz_lines import TARGETS as LINES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from target import CORPUS, Target

TARGETS = {target.name: target for target in (*FILES, *LINES)}
KEPT = [path for target in TARGETS.values() for path in target.kept()]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_kept_inputs(path: Path) -> None:
    TARGETS[path.parent.name].check(path.read_bytes())


def test_the_corpus_belongs_to_targets() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} <= TARGETS.keys()


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_new_inputs(target: Target, data: st.DataObject) -> None:
    target.check(data.draw(target.inputs))
