"""Calls that no sample may miss, each with what was once wrong about its kind."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator

import torch

import snnkernels
from tests.tools.ptx import huge
from tests.tools.ptx.families import FAMILIES
from tests.tools.ptx.sample import Sample

_DENSE = {"layout": "plain", "offset": 0, "dtype": "float32", "values": "normal", "need_x": True}
_FILTER = _DENSE | {"learn": True, "arriving": ["f"], "df": "dense", "per_channel": False}
_NEURON = _DENSE | {
    "shape": (33, 2, 3, 8),
    "reset": "hard",
    "detach_reset": False,
    "refractory": 0,
    "surrogate": "Triangle",
    "record": None,
    "coefficients": "scalar",
    "v_threshold": 1.0,
    "v_reset": -0.1,
    "start": True,
    "arriving": ["v"],
    "ds": "dense",
    "synapse": None,
    "gain": None,
    "regulariser": None,
    "per_channel_filter": False,
}
_SPECIAL = {"values": "special"}
# The surrogate of what is no number is none either.
_ABSENT = _SPECIAL | {"detach_reset": True, "surrogate": "ATan", "shape": (33, 2, 3, 40)}
_PARTS = {"reset": "trace", "synapse": (2, 1), "gain": "scalar", "record": "h"}

# Options by name; what they leave out is drawn.
CALLS: dict[str, tuple[str, dict]] = {
    # A pointer into a tensor without elements is no null pointer.
    "filter without feedback": ("iir", _FILTER | {"orders": (0, 3), "shape": (64, 16)}),
    "filter without feedback or delay": ("iir", _FILTER | {"orders": (0, 0), "shape": (40, 5)}),
    "filter without feedback in a state": (
        "iir",
        _FILTER
        | {"orders": (0, 2), "shape": (50, 3, 7), "start": True, "arriving": ["f", "state"]},
    ),
    "synapse without feedback": (
        "general",
        _NEURON | {"synapse": (0, 2), "arriving": ["s", "v"], "shape": (65, 2, 16)},
    ),
    # What has no gradient adds no term: not 0 * inf, and no zero of another sign.
    "no gradient on s": ("plain", _NEURON | _ABSENT),
    "no gradient on s, soft": ("plain", _NEURON | _ABSENT | {"reset": "soft"}),
    "no gradient on s, h recorded": (
        "plain",
        _NEURON | _ABSENT | {"record": "h", "arriving": ["h"], "reset": "none"},
    ),
    "no gradient on s, all parts": (
        "general",
        _NEURON | _ABSENT | _PARTS | {"arriving": ["v", "trace", "synapse"]},
    ),
    "no gradient on f": (
        "iir",
        _FILTER | _SPECIAL | {"orders": (2, 1), "shape": (33, 40), "arriving": ["state"]},
    ),
    # Numbers beyond float32.
    "a threshold of 1e39": ("plain", _NEURON | {"v_threshold": 1e39, "coefficients": "number"}),
}


def sizes_compile_once(sample: Sample) -> list[str]:
    """Calls that differ in sizes alone run by the kernels that are there."""
    if sample.backend != "triton":
        return []
    shapes = [(steps, 512 * n) for n, steps in enumerate((1, 2, 3, 8, 16, 17, 31, 32, 48), 1)]
    snnkernels.lif(torch.randn(5, 4096), backend=sample.backend)
    before = len(sample.kernels)
    for shape in shapes:
        snnkernels.lif(torch.randn(shape), backend=sample.backend)
    more = len(sample.kernels) - before
    return [f"{len(shapes)} sizes made {more} more compilations"] if more else []


def too_many_steps(sample: Sample) -> list[str]:
    """More steps than a kernel counts are an error that says so, not a wrong result."""
    x = torch.zeros(1, 1).expand(1 << 31, 1)
    try:
        with huge.sparse_outputs():
            snnkernels.lif(x, backend=sample.backend)
    except ValueError as error:
        return [] if "2147483648" in str(error) or "2**31" in str(error) else [str(error)]
    return ["no ValueError"]


def recorded_narrow_rows(sample: Sample) -> list[str]:
    """What Triton 3.6.0 once refused to compile: 16 bits, h recorded, rows not aligned."""
    x = torch.zeros(1320, 17, 100, dtype=torch.bfloat16).transpose(0, 1).requires_grad_()
    sample.machine.last_blocks = 1
    try:
        snnkernels.lif(x, record="h", backend=sample.backend)
    finally:
        sample.machine.last_blocks = 0
    found = [str(finding) for finding in sample.machine.findings]
    sample.machine.findings.clear()
    return found


OTHERS: dict[str, Callable[[Sample], list[str]]] = {
    "sizes alone compile nothing": sizes_compile_once,
    "2^31 steps": too_many_steps,
    "h recorded in narrow rows of 16 bits": recorded_narrow_rows,
} | {
    name: lambda sample, name=name: huge.check(name, sample.backend, sample.machine)
    for name in huge.CASES
}


def check(sample: Sample, only: str = "") -> Iterator[tuple[str, list[str]]]:
    """Names of the calls that contain ``only``, and lines that say what is wrong with them."""
    for name, (family, options) in CALLS.items():
        if only not in name:
            continue
        rng = random.Random(name)
        torch.manual_seed(0)
        case = FAMILIES[family].draw(rng, sample.backend) | options
        yield name, sample.check(FAMILIES[family], case, rng)
    for name, run in OTHERS.items():
        if only not in name:
            continue
        try:
            wrong = run(sample)
        except Exception:  # any error of the package is a finding
            wrong = [traceback.format_exc()]
        yield name, wrong
