"""The Python code that README.md and the docs show runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
PAGES = [
    page
    for page in sorted(README.parent.glob("docs/*.md"))
    if "```python" in page.read_text(encoding="utf-8")
]


def _blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


BLOCKS = _blocks(README)


def test_there_is_code_to_run():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_block_runs(block):
    exec(compile(BLOCKS[block], f"README.md, block {block + 1}", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page):
    """The blocks of a page go on from each other."""
    space = {}
    if page.stem.startswith("coming-from-"):  # a page for users of a library
        pytest.importorskip(page.stem.removeprefix("coming-from-"))
    for number, block in enumerate(_blocks(page)):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), space)
    assert space
