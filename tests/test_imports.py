"""Imports run one way: every import statement of octavo, those inside functions included, against one table."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "octavo"

# Room -> the rooms it may import. The foundation is the modules that lie directly in octavo/; one of them,
# processes.py, hands a checkpoint to a child and so stands above checkpoint/.
MAY_IMPORT = {
    "foundation": {"foundation"},
    "checkpoint": {"checkpoint", "foundation"},
    "scheduling": {"scheduling", "foundation"},
    "processes": {"checkpoint", "foundation"},
    "kernels": {"kernels", "foundation"},
    "parallel": {"parallel", "foundation"},
    "layers": {"layers", "kernels", "parallel", "foundation"},
    "models": {"models", "layers", "parallel", "checkpoint", "foundation"},
    "execution": {"execution", "models", "layers", "kernels", "parallel", "processes", "checkpoint", "foundation"},
    "engine": {"engine", "scheduling", "processes", "checkpoint", "foundation"},
    "repository": {"repository", "engine", "checkpoint", "foundation"},
    "api": {"api", "repository", "engine", "checkpoint", "foundation"},
    "cli": {"cli", "foundation"},
    "__main__": {"cli"},
    "control": {"control", "foundation"},
}
# Room -> the one module of another room it may import: the engine reaches the devices through an Executor only.
DOORS = {"engine": "octavo.execution.executor"}
# Room -> the rooms that only its functions may import, when they are called.
MAY_IMPORT_LATE = {"cli": set(MAY_IMPORT)}
WITHOUT_TORCH = {"foundation", "processes", "checkpoint", "scheduling", "engine", "repository", "api", "control"}
IMPURE = {"asyncio", "concurrent", "datetime", "io", "multiprocessing", "os", "pathlib", "random", "secrets", "select"}
IMPURE |= {"socket", "subprocess", "tempfile", "threading", "time", "urllib", "uuid"}

# octavo/__init__.py is the public face: it names classes of the engine and loads them when they are asked for.
FACE = "octavo"


@dataclass(frozen=True)
class Import:
    module: str  # who imports
    target: str  # what, as far as it is a module
    line: int
    late: bool  # inside a function

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (parts[1] in MAY_IMPORT or (PACKAGE / parts[1]).is_dir()) else "foundation"


def targets(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parents, base] if base else parents)
    for alias in node.names:
        submodule = f"{base}.{alias.name}"
        yield submodule if submodule in MODULES or base == FACE else base


def imports_of(module: str) -> Iterator[Import]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def walk(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield from (Import(module, target, child.lineno, late) for target in targets(child, package))
            else:
                yield from walk(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    return walk(ast.parse(path.read_text()), False)


IMPORTS = [found for module in MODULES for found in imports_of(module)]
INTERNAL = [found for found in IMPORTS if found.target.split(".")[0] == "octavo" and found.module != FACE]


def test_every_folder_has_its_row() -> None:
    folders = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")}
    assert folders <= set(MAY_IMPORT)


def test_imports_run_one_way() -> None:
    wrong = []
    for found in INTERNAL:
        allowed = MAY_IMPORT[room(found.module)]
        if found.late:
            allowed = allowed | MAY_IMPORT_LATE.get(room(found.module), set())
        exists = found.target in MODULES or found.target == f"{FACE}.__version__"  # nothing else through the face
        through_door = DOORS.get(room(found.module)) == found.target
        if not exists or not (through_door or room(found.target) in allowed):
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in INTERNAL:
        if not found.late:
            graph[found.module].add(found.target)
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError with the cycle in it


def test_torch_stays_in_its_rooms() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if room(found.module) in WITHOUT_TORCH and found.target.split(".")[0] in {"torch", "triton"}
    ]
    assert not wrong, "\n".join(wrong)


def test_scheduling_is_pure() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if room(found.module) == "scheduling" and found.target.split(".")[0] in IMPURE | {"numpy"}
    ]
    assert not wrong, "\n".join(wrong)


def test_only_declared_dependencies_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", name)[0].replace("-", "_") for name in project["dependencies"]}
    known = declared | set(sys.stdlib_module_names) | {"octavo", "triton"}  # triton comes with torch where it works
    extras = project["optional-dependencies"]
    optional = {name.split("-")[0] for extra in extras if extra != "dev" for name in extras[extra]}  # only when used
    wrong = [
        str(found)
        for found in IMPORTS
        if (package := found.target.split(".")[0]) not in known and not (found.late and package in optional)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "module", ["octavo", "octavo.cli.main", "octavo.api.app", "octavo.engine.async_engine", "octavo.engine.core"]
)
def test_importing_loads_no_torch(module: str) -> None:
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_triton_waits_for_a_gpu() -> None:
    """Only `kernels.triton` imports it, and nothing imports that before there is a tensor on a GPU."""
    home = "octavo.kernels.triton"
    wrong = [
        str(found)
        for found in IMPORTS
        if not found.module.startswith(home)
        and (found.target.split(".")[0] == "triton" or (found.target.startswith(home) and not found.late))
    ]
    assert not wrong, "\n".join(wrong)
