"""What the documentation says of the source tree is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import snnkernels

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SUFFIXES = ("py", "cpp", "h", "cu", "cuh", "md", "txt", "toml", "json")


def paths(page: str) -> list[str]:
    """Files named in code, and targets of links."""
    found = re.findall(r"`([\w/-]+\.[\w./-]+)`", page) + re.findall(
        r"\]\(([\w/-]+\.[\w./-]+)\)", page
    )
    return [name for name in found if name.rpartition(".")[2] in SUFFIXES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    missing, before = [], page
    for name in paths(page.read_text()):
        # A bare name lies beside the file that is named before it.
        folders = (ROOT, ROOT / "snnkernels", page.parent, before.parent)
        there = next((f / name for f in folders if (f / name).exists()), None)
        if there is None:
            missing.append(name)
        else:
            before = there
    assert not missing, f"{page.name} names {missing}"


def test_paths_are_found():
    page = "`csrc/a.h` and `b.cpp`, [here](docs/c.md), `x.y`, `make demo`"
    assert paths(page) == ["csrc/a.h", "b.cpp", "docs/c.md"]


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    missing = [name for name in snnkernels.__all__ if not re.search(rf"\b{name}\b", page)]
    assert not missing, f"docs/api.md lacks {missing}"
