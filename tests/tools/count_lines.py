"""Counts lines of code: what is left without blank lines, comments and docstrings.

python -m tests.tools.count_lines              # the engine of this tree, by package
python -m tests.tools.count_lines PATH ...     # files and folders, each with its sum
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ("csrc", "python", "snnkernels/core", "snnkernels/backends", "snnkernels/ops")
CPP = (".cpp", ".h", ".cu", ".cuh")
_LAYOUT = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
# A string or character literal, or a comment, whichever begins first.
_LITERAL_OR_COMMENT = re.compile(
    r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|//[^\n]*|/\*.*?\*/', re.DOTALL
)


def python_lines(text: str) -> int:
    """Lines of Python that hold code; a docstring is none."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = body[0] if body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                if isinstance(first.value.value, str):
                    docstrings.update(range(first.lineno, first.end_lineno + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def cpp_lines(text: str) -> int:
    """Lines of C++ or CUDA that hold code."""

    def without_comment(match: re.Match) -> str:
        found = match.group()
        return "\n" * found.count("\n") if found.startswith("/") else found

    return sum(
        bool(line.strip()) for line in _LITERAL_OR_COMMENT.sub(without_comment, text).split("\n")
    )


def count(path: Path) -> int:
    """Lines of code in a file or in a folder, where a file that is a link is not counted again."""
    if path.is_dir():
        return sum(count(file) for file in sorted(path.rglob("*")) if file.is_file())
    if path.is_symlink():
        return 0
    if path.suffix == ".py":
        return python_lines(path.read_text())
    return cpp_lines(path.read_text()) if path.suffix in CPP else 0


def report(paths: Iterable[Path]) -> str:
    """One line for each path, and the sum."""
    found = {str(path): count(path) for path in paths}
    width = max(map(len, [*found, "sum"]))
    rows = [*found.items(), ("sum", sum(found.values()))]
    return "\n".join(f"{name:{width}} {lines:7,}" for name, lines in rows)


if __name__ == "__main__":
    print(report([Path(p) for p in sys.argv[1:]] or [ROOT / p for p in ENGINE]))
