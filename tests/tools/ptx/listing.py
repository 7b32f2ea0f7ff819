"""PTX text to the statements of one kernel."""

from __future__ import annotations

import re
from typing import NamedTuple

_SHARED = r"(?:\.extern\s+)?\.shared[^;]*;"
_ENTRY = r"\.(?:visible|weak)\s+\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{"


class Unknown(Exception):
    """The text holds what the simulator does not model."""


class Statement(NamedTuple):
    """One statement of a body.

    Attributes:
        line: its number, that of the entry's first line being 1.
        kind: "label", "{", "}" or "" for a directive or an instruction.
        text: without the semicolon.
    """

    line: int
    kind: str
    text: str


class Listing(NamedTuple):
    """A kernel's text in parts.

    Attributes:
        name: of the entry.
        parameters: what stands in its parentheses.
        directives: between them and the body.
        shared: declarations of the module's variables in shared memory.
        statements: of the body.
        places: line to what the compiler said about it (file and line of the source).
    """

    name: str
    parameters: str
    directives: str
    shared: list[str]
    statements: list[Statement]
    places: dict[int, str]


def entries(text: str) -> dict[str, str]:
    """The text of each entry of a module, with the module's shared variables before it."""
    head = [m[0].strip() for m in re.finditer(r"^\s*" + _SHARED, text.split(".entry")[0], re.M)]
    head += [m[0] for m in re.finditer("^" + _SHARED, text, re.M) if m[0] not in head]
    found = {}
    for m in re.finditer(r"\.(?:visible|weak)\s+\.entry\s+([\w$]+)\s*\(", text):
        depth, k = 0, text.index("{", m.end())
        while True:
            depth += (text[k] == "{") - (text[k] == "}")
            k += 1
            if depth == 0:
                break
        found[m[1]] = "\n".join(head) + "\n" + text[m.start() : k]
    return found


def read(text: str) -> Listing:
    """Cut an entry's text (of `entries`) into its parts."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    m = re.search(_ENTRY, text, re.S)
    places: dict[int, str] = {}
    body = text[m.end() : text.rindex("}")]
    statements = _statements(body, text[: m.end()].count("\n") + 1, places)
    return Listing(m[1], m[2], m[3], re.findall(_SHARED, text[: m.start()]), statements, places)


def _statements(body: str, first_line: int, places: dict[int, str]) -> list[Statement]:
    statements, unfinished = [], ""
    for number, raw in enumerate(body.split("\n"), first_line):
        line, _, remark = raw.partition("//")
        line = line.strip()
        if line.startswith(".loc") and remark:
            places[number] = remark.strip()
        while line and not line.startswith((".loc", ".file", ".section")):
            if line.startswith(".pragma"):
                line = line.partition(";")[2].strip()
                continue
            label = re.match(r"([$\w]+):\s*", line)
            if label and not unfinished:
                statements.append(Statement(number, "label", label[1]))
                line = line[label.end() :]
                continue
            if line[0] in "{}" and not unfinished:
                statements.append(Statement(number, line[0], ""))
                line = line[1:].strip()
                continue
            part, ended, rest = line.partition(";")
            unfinished = f"{unfinished} {part}".strip()
            if ended:
                if unfinished:
                    statements.append(Statement(number, "", unfinished))
                unfinished = ""
            line = rest.strip()
    if unfinished:
        raise Unknown(f"an unfinished statement: {unfinished}")
    return statements
