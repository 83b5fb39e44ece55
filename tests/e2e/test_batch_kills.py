"""A server killed within a batch, several times: every line is answered once. `make qa` does it with 10,000."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "qa"))

from batch_kills import storm


def test_kills_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    assert storm(tmp_path, lines=200, kills=2) == []
