"""What the code promises about itself in words is true: flags, pins, documents, the README's tree."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from octavo.config import SECTIONS, ServerConfig

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "octavo"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>[^)#\s]+)(?:#[^)]*)?\)")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    return canonical(re.split(r"[^\w.-]", requirement)[0])


@pytest.mark.parametrize("section", [*SECTIONS, ServerConfig])
def test_every_flag_has_help(section: type) -> None:
    assert not [item.name for item in fields(section) if not item.metadata.get("help")]


def test_flags_are_named_once() -> None:
    names = [item.name for section in (*SECTIONS, ServerConfig) for item in fields(section)]
    assert sorted(names) == sorted(set(names))


def test_every_module_states_its_contract() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        if (source := path.read_text()) and not ast.get_docstring(ast.parse(source))
    ]
    assert not silent


def test_environment_variables_live_in_one_table() -> None:
    variable = re.compile(r"\bOCTAVO_[A-Z][A-Z_]*\b")
    table = set(variable.findall((PACKAGE / "env.py").read_text()))
    used = {
        name: str(path.relative_to(ROOT))
        for path in [*PACKAGE.rglob("*.py"), *DOCUMENTS]
        for name in variable.findall(path.read_text())
    }
    assert {name: where for name, where in used.items() if name not in table} == {}


def test_constraints_pin_every_dependency() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = configuration["project"]
    wanted = [*project["dependencies"], *configuration["build-system"]["requires"]]
    wanted += [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "exact versions, without local suffix"
    names = {requirement_name(requirement) for requirement in wanted} - {"triton"}  # torch's to choose
    assert names <= {requirement_name(line) for line in lines}


def test_readme_lists_every_folder() -> None:
    tree = set(re.findall(r"^ *(?:octavo/)?(\w+)/ ", (ROOT / "README.md").read_text(), re.MULTILINE))
    folders = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))}
    assert folders <= tree


def test_documents_name_verbs_that_exist() -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {verb for path in DOCUMENTS for verb in re.findall(r"`make ([a-z-]+)", path.read_text())}
    assert named <= verbs


def definitions(path: Path) -> set[str]:
    """Names a Python file defines, methods as `Class.method`."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, kinds):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{member.name}" for member in node.body if isinstance(member, kinds)}
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """A link to a file finds the file; one whose text is `` `Class.method` `` finds that in the file."""
    dead = []
    for link in LINK.finditer(document.read_text()):
        if "://" in link["target"]:
            continue
        target = document.parent / link["target"]
        symbol = re.fullmatch(r"`([\w.]+)(?:\(\))?`", link["text"])
        if not target.exists():
            dead.append(link[0])
        elif symbol and target.suffix == ".py" and not symbol[1].endswith(".py"):
            dead += [link[0]] if symbol[1] not in definitions(target) else []
    assert not dead


def test_test_files_have_names_of_their_own() -> None:
    """pytest collects no two modules of one name from folders that are no packages."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
