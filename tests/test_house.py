"""Functions are short, and lines of code are counted as they are meant to be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.tools import count_lines

PACKAGE = Path(__file__).parents[1] / "snnkernels"
FUNCTION, KERNEL = 120, 150  # lines without the docstring; a kernel is compiled by Triton


def functions(text: str):
    """(name, lines without the docstring, whether Triton compiles it) of every function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            compiled = any("jit" in ast.unparse(d) for d in node.decorator_list)
            yield node.name, lines, compiled


def test_functions_are_read_in_one_sitting():
    long = [
        f"{file.relative_to(PACKAGE)}: {name} has {lines} lines"
        for file in sorted(PACKAGE.rglob("*.py"))
        for name, lines, compiled in functions(file.read_text())
        if lines > (KERNEL if compiled else FUNCTION)
    ]
    assert not long, "\n".join(long)


def test_the_length_of_a_function_is_found():
    text = '@triton.jit\ndef f(\n    a,\n):\n    """One.\n\n    Two."""\n    return a\n'
    assert list(functions(text)) == [("f", 4, True)]


PYTHON = '''"""A module,
on two lines."""

import os  # counted


def f(x):
    """One line."""
    # a comment
    text = """not a
    docstring"""
    return (
        x,  # counted

        text,
    )
'''
CPP = """// a comment
#include "a//b.h"

/* a comment
   on two lines */ int counted;
const char* url = "http://no.comment/*";  // counted
char quote = '"'; // "
/* one */ /* two */
"""


@pytest.mark.parametrize(
    ("count", "text", "lines"),
    [(count_lines.python_lines, PYTHON, 8), (count_lines.cpp_lines, CPP, 4)],
)
def test_lines_of_code(count, text, lines):
    assert count(text) == lines


def test_a_linked_file_counts_once(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\ny = 2\n")
    (tmp_path / "b.py").symlink_to(tmp_path / "a.py")
    (tmp_path / "c.txt").write_text("words\n")
    assert count_lines.count(tmp_path) == 2
    assert count_lines.report([tmp_path]).splitlines()[-1].split() == ["sum", "2"]
