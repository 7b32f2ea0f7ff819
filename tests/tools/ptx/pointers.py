"""Which memory a kernel may touch: its pointers, as its own code uses them, and their tensors.

Nothing here knows the layout of any kernel's parameters: the code says through which of their
bytes it reads and writes, the values there are looked up among the tensors of the caller.
"""

from __future__ import annotations

import struct
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator

from torch import Tensor

from tests.tools.ptx import library
from tests.tools.ptx.decoder import PARAMETER_BASE, Kernel
from tests.tools.ptx.machine import READ, WRITE, Argument, extent

_REGISTER, _IMMEDIATE = 0, 1
_GLOBAL, _PARAMETER = 1, 3
_DEPTH = 5  # of containers in which tensors are looked for
_NO_ADDRESS = ("SETP", "LD", "VOTE")  # their result is no address, whatever goes in


def uses(kernel: Kernel) -> dict[int, int]:
    """Rights by the offset of eight bytes of parameters: `READ`, `WRITE` or both.

    Numbers that addresses are computed from are among them; as no tensor lies at such an address,
    that does no harm.
    """
    operations, types, _ = library.names()
    wide = {types[name] for name in ("b64", "u64", "s64")}
    silent = {operations[name] for name in _NO_ADDRESS}
    load, store, copy = (operations[name] for name in ("LD", "ST", "CPASYNC"))
    rows = [_Row(*row) for row in _rows(kernel)]
    constants = _parameter_addresses(rows, operations)
    from_: dict[int, set[int]] = defaultdict(set)  # register to the parameters that it comes from
    changed = True
    while changed:
        changed = False
        for row in rows:
            if row.op == load and row.space == _PARAMETER and row.type in wide:
                kind, value = row.inputs[0]
                base = value if kind == _IMMEDIATE else constants.get(value)
                if base is None:
                    continue
                offset = base - PARAMETER_BASE + row.offset
                found = [{offset + 8 * k} for k in range(len(row.out))]
            elif row.op in silent:
                continue
            else:
                sources = [from_[v] for kind, v in row.inputs if kind == _REGISTER and v in from_]
                if not sources:
                    continue
                found = [set().union(*sources)] * len(row.out)
            for register, origins in zip(row.out, found, strict=True):
                if not origins <= from_[register]:
                    from_[register] |= origins
                    changed = True
    rights: dict[int, int] = defaultdict(int)
    for row in rows:
        accesses = []
        if row.op in (load, store) and row.space == _GLOBAL:
            accesses = [(row.inputs[0], READ if row.op == load else WRITE)]
        elif row.op == copy:
            accesses = [(row.inputs[1], READ)]
        for (kind, value), right in accesses:
            if kind == _REGISTER:
                for offset in from_.get(value, ()):
                    rights[offset] |= right
    return dict(rights)


def _parameter_addresses(rows: list[_Row], operations: dict[str, int]) -> dict[int, int]:
    """Registers that hold the address of a parameter."""
    known: dict[int, int] = {}
    moves = [row for row in rows if row.op in (operations["MOV"], operations["ADD"])]
    before = -1
    while before != len(known):
        before = len(known)
        for row in moves:
            values = [v if kind == _IMMEDIATE else known.get(v) for kind, v in row.inputs]
            if None not in values and sum(values) >= PARAMETER_BASE:
                known[row.out[0]] = sum(values)
    return known


class _Row:
    """What matters here of an instruction."""

    __slots__ = ("op", "type", "space", "offset", "out", "inputs")

    def __init__(self, op, type_, space, offset, out, inputs):
        self.op, self.type, self.space, self.offset = op, type_, space, offset
        self.out, self.inputs = out, inputs


def _rows(kernel: Kernel) -> Iterator[tuple]:
    code = kernel.code
    fields = (
        code[name].tolist() for name in ("op", "type", "space", "offset", "outputs", "inputs")
    )
    for op, type_, space, offset, n_out, n_in, out, in_ in zip(
        *fields, code["out"].tolist(), code["in"].tolist(), strict=True
    ):
        registers = [v if kind == _REGISTER else -1 for kind, v in out[:n_out]]
        yield op, type_, space, offset, registers, in_[:n_in]


def arguments(kernel_uses: dict[int, int], parameters: bytes, tensors: dict) -> list[Argument]:
    """The tensors that a launch may touch.

    Args:
        kernel_uses: of `uses`.
        parameters: bytes of the launch.
        tensors: by address, of `tensors_of_callers`.
    """
    rights: dict[int, int] = defaultdict(int)
    for offset, right in kernel_uses.items():
        (address,) = struct.unpack_from("<Q", parameters, offset)
        if address in tensors:
            rights[address] |= right
    return [Argument(*tensors[address], right) for address, right in rights.items()]


def tensors_of_callers(package: str) -> dict[int, tuple[str, Tensor]]:
    """Names and tensors that functions of a package hold now, by address.

    Of those at one address, the innermost function's counts, and of its own the widest.
    """
    found: dict[int, tuple[str, Tensor]] = {}
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == package:
            held: dict[int, tuple[str, Tensor]] = {}
            for name, tensor in _tensors(frame.f_locals.items(), _DEPTH):
                if tensor.data_ptr() and _wider(tensor, held.get(tensor.data_ptr())):
                    held[tensor.data_ptr()] = name, tensor
            found = held | found
        frame = frame.f_back
    return found


def _wider(tensor: Tensor, known: tuple[str, Tensor] | None) -> bool:
    return known is None or extent(tensor)[1] > extent(known[1])[1]


def _tensors(items: Iterable, depth: int) -> Iterator[tuple[str, Tensor]]:
    for name, value in items:
        if isinstance(value, Tensor):
            yield str(name), value
        elif depth:
            yield from _tensors(_parts(str(name), value), depth - 1)


def _parts(name: str, value: object) -> Iterable:
    if isinstance(value, dict):
        return value.items()
    if hasattr(value, "_asdict"):
        return value._asdict().items()
    if isinstance(value, (tuple, list)):
        return ((f"{name}[{k}]", part) for k, part in enumerate(value))
    if type(value).__module__.partition(".")[0] == "snnkernels" and hasattr(value, "__dict__"):
        return vars(value).items()
    return ()
