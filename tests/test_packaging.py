"""The lists of dependencies hold what is used, and nothing else."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
RUN_TIME = (
    "triton",
    "cuda-jit",
    "train",
    "demo",
    "data",
    "convert",
    "events",
    "search",
)  # extras that users install
IMPORTED_AS = {
    "cupy-cuda13x": {"cupy", "cupy_backends"},
    "pillow": {"PIL"},
}  # others are imported by their name


def names(requirements) -> set[str]:
    """Packages of a list, those of its own extras left out."""
    found = (re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements)
    return {name for name in found if name != "snnkernels"}


def imports(folder: Path) -> set[str]:
    """Packages beyond the standard library that the modules of a folder import or look for."""
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "find_spec":
                found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return found - set(sys.stdlib_module_names) - {"snnkernels", "tests", "bench", "__future__"}


def test_the_package_imports_what_its_lists_name():
    listed = names(PROJECT["dependencies"]).union(*(names(EXTRAS[extra]) for extra in RUN_TIME))
    known = set().union(*(IMPORTED_AS.get(name, {name}) for name in listed))
    used = imports(ROOT / "snnkernels")
    assert used <= known, f"imported, but in no list: {sorted(used - known)}"
    unused = {name for name in listed if not IMPORTED_AS.get(name, {name}) & used}
    assert not unused, f"listed, but never imported: {sorted(unused)}"


def test_only_what_is_installed_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line}
    installed = names(PROJECT["dependencies"]).union(*map(names, EXTRAS.values()))
    installed |= set(re.findall(r"[\w-]+", (ROOT / "Makefile").read_text()))
    for name in sorted(installed):  # and what these bring along
        try:
            needed = [line for line in requires(name) or () if "extra ==" not in line]
        except PackageNotFoundError:
            continue
        installed |= names(needed)
    assert pinned <= installed, f"pinned for nobody: {sorted(pinned - installed)}"
