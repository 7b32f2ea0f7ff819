"""Lines of code are counted as they are meant to be."""

from __future__ import annotations

import pytest

from tests.tools import count_lines

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
