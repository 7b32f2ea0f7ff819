"""``simulator/`` as a library for ctypes, and the names of operations and types that it knows."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import numpy as np

from tests.tools.native import build


class Grid(ctypes.Structure):
    """``simulator.h: Grid``."""

    _fields_ = [
        ("size", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32),
        ("first", ctypes.c_uint32),
        ("last", ctypes.c_uint32),
    ]


class Run(ctypes.Structure):
    """``interface.cpp: Run``."""

    _fields_ = [
        ("parameters", ctypes.c_char_p),
        ("bytes", ctypes.c_uint64),
        ("parameter_base", ctypes.c_uint64),
        ("limit", ctypes.c_uint64),
        ("grid", Grid),
        ("seed", ctypes.c_uint32),
        ("ulps", ctypes.c_int32),
    ]


@lru_cache
def load() -> ctypes.CDLL:
    """The library, built where it is not up to date."""
    library = ctypes.CDLL(str(build("ptx_simulator")))
    pointer, u64, u8 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint8
    arguments = {
        "names": [],
        "new": [pointer, u64, u64],
        "free": [pointer],
        "clear": [pointer],
        "add_symbol": [pointer, u64, u64],
        "add_buffer": [pointer, u64, u64, pointer, pointer, u8],
        "run": [pointer, ctypes.POINTER(Run)],
        "finding": [pointer, u64, pointer, ctypes.POINTER(ctypes.c_char_p)],
        "counts": [pointer, pointer],
        "hits": [pointer, pointer],
    }
    for name, types in arguments.items():
        getattr(library, f"simulator_{name}").argtypes = types
    library.simulator_new.restype = pointer
    library.simulator_names.restype = ctypes.c_char_p
    library.simulator_finding.restype = ctypes.c_bool
    return library


def _numbered(line: str) -> dict[str, int]:
    return {name: k for k, name in enumerate(line.split(", "), 1)}


@lru_cache
def names() -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Numbers of operations ("ADD"), of types ("f32") and of comparisons ("lt")."""
    operations, types, comparisons = load().simulator_names().decode().split("\n")
    comparisons = comparisons.lower().replace("nan_", "nan")
    return _numbered(operations), _numbered(types.lower()), _numbered(comparisons)


# One instruction: simulator/instruction.h: Instruction.
ROW = np.dtype(
    [
        (name, np.int64)
        for name in (
            "op type from_type flags guard negated target line outputs inputs offset rounding mode "
            "extra space unused"
        ).split()
    ]
    + [("out", np.int64, (8, 2)), ("in", np.int64, (9, 2))]
)
