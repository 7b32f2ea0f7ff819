"""Kernels with one faulty instruction: does a call that runs it notice?"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tests.tools.ptx import library
from tests.tools.ptx.machine import Loaded
from tests.tools.ptx.operations import BITS
from tests.tools.ptx.sample import Done, Sample

MOST_CALLS = 40  # that a fault is given to be noticed in
LIMIT = 300_000  # instructions of a thread: a fault may make an endless loop
_SWAPPED = {
    "lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq", "ltu": "leu",
    "leu": "ltu", "geu": "gtu", "gtu": "geu", "num": "nan", "nan": "num",
}  # fmt: skip
_LEFT_OUT = ("BAR", "WBAR", "CPWAIT", "CPCOMMIT", "CPASYNC", "ST", "CVT", "NEG", "ABS")
_OTHER = {"ADD": "SUB", "SUB": "ADD", "AND": "OR", "OR": "AND"}


class Fault(NamedTuple):
    """What was done to which instruction, and how many calls ran it."""

    kind: str
    kernel: str
    statement: str
    calls: int
    noticed: bool


def faults(row: np.void) -> Iterator[tuple[str, np.void]]:
    """Small faults of an instruction: what it is, and the faulty row."""
    operations, types, comparisons = library.names()
    operation = next(name for name, number in operations.items() if number == row["op"])
    type_ = next((name for name, number in types.items() if number == row["type"]), "")

    def changed(**fields) -> np.void:
        other = row.copy()
        for name, value in fields.items():
            other[name] = value
        return other

    if operation in _OTHER:
        other = _OTHER[operation]
        yield f"{operation.lower()} to {other.lower()}", changed(op=operations[other])
    if operation == "MUL" and type_ in ("f32", "f64"):
        yield "mul to add", changed(op=operations["ADD"])
    if operation in ("LD", "ST"):
        size = max(1, BITS[type_] // 8)
        elements = max(int(row["outputs"]), int(row["inputs"]) - 1)
        yield f"{operation.lower()} one element on", changed(offset=row["offset"] + size)
        back = row["offset"] - size * elements
        yield f"{operation.lower()} one vector back", changed(offset=back)
    if row["guard"] >= 0:
        yield "guard negated", changed(negated=1 - row["negated"])
    if operation == "SETP":
        now = next(name for name, number in comparisons.items() if number == row["mode"])
        if now in _SWAPPED:
            yield f"setp {now} to {_SWAPPED[now]}", changed(mode=comparisons[_SWAPPED[now]])
    if operation == "SELP":
        sources = row["in"].copy()
        sources[[0, 1]] = sources[[1, 0]]
        yield "sources swapped", changed(**{"in": sources})
    if operation in ("SHL", "SHR") and row["in"][1][0] == 1:
        sources = row["in"].copy()
        sources[1][1] += 1
        yield "shift by one more", changed(**{"in": sources})
    if operation in _LEFT_OUT:
        yield f"{operation.lower()} left out", changed(op=operations["NOP"])
    if operation == "CPWAIT":
        yield "waits for one group fewer", changed(offset=row["offset"] + 1)


def try_faults(sample: Sample, history: list[Done], count: int, seed: int) -> Iterator[Fault]:
    """Give kernels one fault each and run the calls again that led through it.

    Args:
        sample: whose calls these are.
        history: calls that were right.
        count: of faults.
        seed: of their choice.
    """
    rng = random.Random(seed)
    sample.machine.limit = LIMIT
    calls: dict[tuple[int, int], list[Done]] = {}
    kernels: dict[int, Loaded] = {}
    for done in history:
        for kernel, rows in done.hits:
            kernels[id(kernel)] = kernel
            for row in rows.tolist():
                calls.setdefault((id(kernel), row), []).append(done)
    order = {key: k for k, key in enumerate(kernels)}
    places = sorted(calls, key=lambda place: (order[place[0]], place[1]))
    while count and places:
        place = rng.choice(places)
        kernel, row = kernels[place[0]], place[1]
        possible = list(faults(kernel.kernel.code[row]))
        if not possible:
            continue
        count -= 1
        kind, faulty = rng.choice(possible)
        code = kernel.kernel.code.copy()
        code[row] = faulty
        kernel.replace(code)
        before = kernel.hits.copy()
        tried = calls[place][:MOST_CALLS]
        noticed = any(sample.check_again(done) for done in tried)
        kernel.restore()
        kernel.hits = before
        name, text = kernel.kernel.name, kernel.kernel.text[row]
        line = kernel.kernel.code[row]["line"]
        yield Fault(kind, name, f"line {line}: {text}", len(tried), noticed)


def shares(found: list[Fault]) -> str:
    """How many were noticed, by kind."""
    noticed = Counter(fault.kind for fault in found if fault.noticed)
    every = Counter(fault.kind for fault in found)
    lines = [f"{kind}: {noticed[kind]} of {n}" for kind, n in sorted(every.items())]
    return "\n".join([*lines, f"all: {noticed.total()} of {every.total()}"])
