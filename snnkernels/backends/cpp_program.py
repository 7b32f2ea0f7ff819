"""Backend "cpp" of traced neurons: a program becomes passes over rows, see ``csrc/snncore.h``.

Values become slots of a table of rows. A value that one instruction makes and one other uses is
joined with it where the kernels have the pair; what is left gets rows that are used again as soon
as they are free, so that all of them stay in the L1 cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from snnkernels.backends.compiled_programs import Match, find
from snnkernels.backends.cpp import CHECKPOINT_EVERY, _address, _rows, _shape, reduce_channels
from snnkernels.core.program import OPERATIONS, Instruction, Program, parse, pruned
from snnkernels.core.program_reference import constants as constant_values
from snnkernels.core.strides import Layout

try:
    from snnkernels import _core
except ImportError:  # installed without a C++ compiler
    _core = None

# Rows of the narrowest tile, of 64 neurons, that fit the pool of csrc/cpu/interpreter.cpp.
_MOST_ROWS = 1536

_CODES = {name: code for code, name in enumerate([*OPERATIONS, "copy"])}
_PAIRED = ("add", "sub", "mul")
_COMPARED = ("ge", "gt", "le", "lt")


class _Pair(NamedTuple):
    """An instruction in the kernels' form: its code and the values that it takes."""

    target: str
    code: int
    arguments: tuple[str, ...]


def _joined(instructions: Sequence[Instruction], final: set[str]) -> list[_Pair]:
    """The instructions, pairs of them as one where the kernels have that."""
    uses: dict[str, int] = dict.fromkeys(final, 2)
    for i in instructions:
        for a in i.arguments:
            uses[a] = uses.get(a, 0) + 1
    alone = {i.target: i for i in instructions if uses.get(i.target) == 1}
    gone: set[str] = set()
    out: list[_Pair] = []
    for i in instructions:
        code, arguments = _CODES[i.operation], i.arguments
        first = next((alone[a] for a in arguments if _joins(i, a, alone)), None)
        if first is not None:
            side = arguments.index(first.target)
            others = tuple(a for a in arguments if a != first.target)
            arguments = (*first.arguments, *others)
            base = len(_CODES)
            if i.operation == "where":
                code = base + 2 * len(_PAIRED) ** 2 + _COMPARED.index(first.operation)
            else:
                pair = _PAIRED.index(first.operation) * 3 + _PAIRED.index(i.operation)
                code = base + 2 * pair + side
            gone.add(first.target)
            alone.pop(i.target, None)  # no joins of three
        out.append(_Pair(i.target, code, arguments))
    return [i for i in out if i.target not in gone]


def _joins(i: Instruction, argument: str, alone: dict[str, Instruction]) -> bool:
    first = alone.get(argument)
    if first is None:
        return False
    if i.operation == "where":
        return argument == i.arguments[0] and first.operation in _COMPARED
    return i.operation in _PAIRED and first.operation in _PAIRED


def _part(
    instructions: Sequence[Instruction],
    slots: dict[str, int],
    rows: Sequence[tuple[str, int]],
    sequences: Sequence[tuple[str, int]],
    first_temporary: int,
) -> tuple[list[tuple[int, ...]], int]:
    """Instructions on slots, and the number of temporaries that they take.

    Args:
        instructions: in order.
        slots: of the values that are there before.
        rows: values and the slots of rows that they are written to, which may be read again.
        sequences: values and the slots of outputs, which are written past the caches.
        first_temporary: its slot.
    """
    wanted = [value for value, _ in [*rows, *sequences]]
    joined = _joined(pruned(instructions, wanted), set(wanted))
    last: dict[str, int] = {}
    for k, i in enumerate(joined):
        for a in i.arguments:
            last[a] = k
    slots = dict(slots)
    made = {i.target for i in joined}
    to: dict[str, int] = {}
    also: dict[str, int] = {}
    copies = []
    for value, slot in rows:
        if value in made and value not in to:
            to[value] = slot
        else:
            copies.append((value, slot))
    for value, slot in sequences:
        if value not in made or value in also:
            copies.append((value, slot))
        elif value not in to and value not in last and value not in dict(copies):
            to[value] = slot
        else:
            also[value] = slot
    for value, _ in copies:
        last[value] = len(joined)
    free: list[int] = []
    temporaries = 0
    out: list[tuple[int, ...]] = []
    for k, i in enumerate(joined):
        arguments = [slots[a] for a in i.arguments]
        for a in set(i.arguments):
            if last[a] == k and slots[a] >= first_temporary:
                free.append(slots[a])
        if i.target in to:
            slots[i.target] = to[i.target]
        else:
            if not free:
                free.append(first_temporary + temporaries)
                temporaries += 1
            slots[i.target] = free.pop()
        padded = (*arguments, *[arguments[0]] * (4 - len(arguments)))
        out.append((i.code, slots[i.target], also.get(i.target, -1), *padded))
    for value, slot in copies:
        out.append((_CODES["copy"], slot, -1, *[slots[value]] * 4))
    return out, temporaries


class _Lowered(NamedTuple):
    code: object  # _core.Program
    constants: tuple[str | None, ...]  # values that are the same at all steps; None: not used
    count: int  # of sums of gradients of parameters
    sums: tuple[int | None, ...]  # for each parameter, which of them it is; None: it is zero


def _constants_of(program: Program) -> list[str]:
    """Names of the values that are the same at all steps, in the order of their slots."""
    constants = [f"n{k}" for k in range(program.numbers)]
    constants += [f"p{k}" for k in range(program.parameters)]
    return constants + [i.target for i in program.once]


def _compiled(match: Match) -> _Lowered:
    """A program that runs in the loops of one that is compiled ahead of time."""
    program = match.program
    constants = _constants_of(program)
    counts = (program.inputs, program.states, program.outputs, program.parameters)
    code = _core.Program([len(constants), *counts], [([], 0)] * 3, match.index)
    return _Lowered(code, tuple(map(match.constants.get, constants)), counts[3], match.sums)


@lru_cache(maxsize=256)
def _lowered(text: str, wanted: tuple[bool, ...]) -> _Lowered:
    """The program for these gradients (of inputs, states, parameters)."""
    match = find(text, _core.PROGRAMS)
    if match is not None:
        return _compiled(match)
    program = parse(text)
    constants = _constants_of(program)
    x, states, outputs = program.inputs, program.states, program.outputs
    sums = program.gradients[x + states :]
    kinds = (
        (f"x{k}" for k in range(x)),
        (f"v{k}" for k in range(states)),
        (f"g{k}" for k in range(outputs)),
        (f"d{k}" for k in range(states)),
    )
    leaves = [*constants, "zero", *(name for kind in kinds for name in kind)]
    slots = {name: slot for slot, name in enumerate(leaves)}
    counts = {"out": outputs, "next": states, "dx": x, "before": states, "sum": len(sums)}
    at, slot = {}, len(leaves)
    for kind, count in counts.items():
        at[kind] = slot
        slot += count
    after = program.results[outputs:]
    nexts = [(value, at["next"] + k) for k, value in enumerate(after)]
    outs = [(value, at["out"] + k) for k, value in enumerate(program.results[:outputs])]
    back = [g or "zero" for g in program.gradients]
    befores = [(value, at["before"] + k) for k, value in enumerate(back[x : x + states])]
    dxs = [(back[k], at["dx"] + k) for k in range(x) if wanted[k]]
    adds = [
        Instruction(f"s{k}", "add", (f"a{k}", g))
        for k, g in enumerate(sums)
        if g and wanted[x + states + k]
    ]
    slots |= {f"a{k}": at["sum"] + k for k in range(len(sums))}
    totals = [(i.target, slots[f"a{i.target[1:]}"]) for i in adds]
    everything = [*program.forward, *program.adjoint, *adds]
    parts = [
        _part(program.forward, slots, nexts, outs, slot),
        _part(program.forward, slots, nexts, [], slot),
        _part(everything, slots, [*befores, *totals], dxs, slot),
    ]
    used = {slot for instructions, _ in parts for i in instructions for slot in i[3:]}
    _check_size(program, slot + max(count for _, count in parts))
    code = _core.Program([len(constants), x, states, outputs, len(sums)], parts, -1)
    constants = tuple(n if slots[n] in used else None for n in constants)
    return _Lowered(code, constants, len(sums), tuple(range(len(sums))))


def how(text: str) -> str:
    """How this backend runs a program, in words."""
    if find(text, _core.PROGRAMS) is not None:
        return "compiled ahead of time"
    return "interpreted over rows in the L1 cache"


def _check_size(program: Program, slots: int) -> None:
    sequences = max(program.inputs, program.outputs)
    rows = slots + (CHECKPOINT_EVERY + 1) * program.states + 2 * program.parameters
    most = (_core.MAX_PROGRAM_SEQUENCES, _core.MAX_PROGRAM_SLOTS, _MOST_ROWS)
    if any(got > limit for got, limit in zip((sequences, slots, rows), most, strict=True)):
        raise RuntimeError(
            f"the step is too large for backend 'cpp': {sequences} inputs or outputs, {slots} "
            f"values, {rows} with its states of {CHECKPOINT_EVERY} steps; it takes up to "
            f"{most[0]}, {most[1]} and {most[2]}. Use backend='torch'"
        )


def _constants(names, text: str, parameters, numbers, layout: Layout, row: Tensor):
    """The slots of constants, and the tensors behind them, to be kept as long as the call."""
    values = {}
    if any(name and name[0] != "n" for name in names):
        values = constant_values(parse(text), parameters, numbers, torch.float32, "cpu")
    found, kept = [], []
    for name in names:
        if name is None or name[0] == "n":
            found.append((0, 1, numbers[int(name[1:])] if name else 0.0))
            continue
        value = values[name]
        if value.numel() == 1 or _per_channel(value, layout):
            value = value.contiguous()
        else:
            value = _in_order_of(row, value)
        kept.append(value)
        found.append((value.data_ptr(), value.numel(), 0.0))
    return found, kept


def _in_order_of(row: Tensor, value: Tensor) -> Tensor:
    """The value, broadcast over the samples, in the memory order of row `[N, *]`."""
    place = {"dtype": value.dtype, "device": value.device}
    return torch.empty_strided(row.shape, row.stride(), **place).copy_(value)


def _per_channel(value: Tensor, layout: Layout) -> bool:
    return value.numel() == layout.channels and value.shape[0] == layout.channels


def forward(
    layout,
    row,
    text,
    x,
    state,
    start,
    parameters,
    numbers,
    every,
    *,
    outputs,
    states_out,
    checkpoints,
) -> None:
    """Fill outputs, states_out and checkpoints; see ``csrc/snncore.h: ProgramForward``.

    Args:
        layout: the walk over the outputs and x.
        row: any tensor `[N, *]` in the memory order of a state.
        text: the program.
        x: inputs.
        state: before the first step, in that order; None: the number in ``start``.
        start: those numbers.
        parameters: 0-d or broadcast over a sample.
        numbers: values of the slots.
        every: steps between two checkpoints; 0: none.
        outputs: in x's dtype or float32.
        states_out: after the last step.
        checkpoints: `[(T - 1) // every, states, N, *]`.
    """
    code, names, *_ = _lowered(text, (False,) * len(parse(text).gradients))
    constants, kept = _constants(names, text, parameters, numbers, layout, row)
    _core.program_forward(
        code,
        _shape(layout, x[0].dtype),
        torch.get_num_threads(),
        every,
        constants,
        [_rows(t, rows) for t, rows in zip(x, layout.inputs, strict=True)],
        [(_address(s), number) for s, number in zip(state, start, strict=True)],
        [(_rows(t, layout.out), t.dtype == torch.float32) for t in outputs],
        [t.data_ptr() for t in states_out],
        checkpoints.data_ptr(),
    )


def backward(
    layout,
    row,
    text,
    x,
    state,
    start,
    parameters,
    numbers,
    every,
    checkpoints,
    doutputs,
    dstates,
    *,
    dx,
    dstates0,
    dparameters,
) -> None:
    """Fill the gradients that are not None. Arguments as of `forward`, and gradients."""
    wanted = tuple(g is not None for g in (*dx, *dstates0, *dparameters))
    code, names, count, places = _lowered(text, wanted)
    constants, kept = _constants(names, text, parameters, numbers, layout, row)
    sums: list[Tensor | None] = [None] * count
    for gradient, k in zip(dparameters, places, strict=True):
        if gradient is not None and k is not None:
            place = {"dtype": torch.float32, "device": gradient.device}
            sums[k] = torch.empty(layout.neurons, **place)
    rows = [_rows(t, r) for t, r in zip([*x, *doutputs], layout.inputs, strict=True)]
    _core.program_backward(
        code,
        _shape(layout, x[0].dtype),
        torch.get_num_threads(),
        every,
        constants,
        rows[: len(x)],
        [(_address(s), number) for s, number in zip(state, start, strict=True)],
        checkpoints.data_ptr(),
        [
            (r, d is not None and d.dtype == torch.float32)
            for r, d in zip(rows[len(x) :], doutputs, strict=True)
        ],
        [_address(d) for d in dstates],
        [_rows(t, layout.out) for t in dx],
        [_address(t) for t in dstates0],
        [_address(t) for t in sums],
    )
    for gradient, k in zip(dparameters, places, strict=True):
        if gradient is None:
            continue
        if k is None:
            gradient.zero_()
            continue
        per_neuron = sums[k]
        if gradient.numel() == 1 or _per_channel(gradient, layout):
            reduce_channels(layout, per_neuron, gradient)
        else:
            _sum_over_batch(per_neuron, row, gradient)


def _sum_over_batch(per_neuron: Tensor, row: Tensor, to: Tensor) -> None:
    """Sum `[M]`, in the memory order of row `[N, *]`, into `[*]`: sample by sample, in float64."""
    total = torch.zeros(to.shape, dtype=torch.float64, device=to.device)
    for sample in per_neuron.as_strided(row.shape, row.stride()).unbind(0):
        total += sample
    to.copy_(total)
