"""docs/reliability.md: every test that it names exists, and every row of its lists has one or says why not."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCUMENT = (TESTS.parent / "docs" / "reliability.md").read_text()


def defined(folder: Path) -> set[str]:
    return {
        node.name
        for path in folder.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def cells(number: str) -> tuple[str, str]:
    """What a row's third and fourth columns say."""
    ((answer, tests),) = re.findall(rf"^\| {number} \| [^|]+ \| ([^|]+) \| ([^|]*) ?\|$", DOCUMENT, re.MULTILINE)
    return str(answer), str(tests)


def test_named_tests_exist() -> None:
    names = set(re.findall(r"`(test_[a-z0-9_*]+)`", DOCUMENT))
    assert len(names) > 100
    there = defined(TESTS)
    assert not {name for name in names if not any(fnmatch(test, name) for test in there)}


def test_every_row_has_a_test_or_is_about_something_absent() -> None:
    for number in [*(str(row) for row in range(1, 77)), *(f"F{fault}" for fault in range(1, 38))]:
        answer, tests = cells(number)
        assert "`test_" in tests or answer.startswith("feature absent") or "`make " in answer, number


def test_every_test_of_a_row_is_in_its_row() -> None:
    for name in defined(TESTS / "qa"):
        for kind, number in re.findall(r"(row_|f)(\d\d)(?=_)", name):
            _, tests = cells(("F" if kind == "f" else "") + str(int(number)))
            named = re.findall(r"`(test_[a-z0-9_*]+)`", tests)
            assert any(fnmatch(name, pattern) for pattern in named), name
