"""Statements of a kernel to the simulator's instructions. What it does not know it refuses.

An opcode, a modifier, a type or an operand that is not modelled raises `Unknown`: nothing is
skipped, nothing is guessed.
"""

from __future__ import annotations

import itertools
import re
import struct
from dataclasses import dataclass, field

import numpy as np

from tests.tools.ptx import library
from tests.tools.ptx.irregular import Irregular
from tests.tools.ptx.listing import Statement, Unknown, read
from tests.tools.ptx.operations import (
    BITS,
    SIMPLE,
    SPECIAL,
    Simple,
    flags_of,
    require,
    rounded,
    rounding_of,
)

PARAMETER_BASE = 0x7F000000_0000
SHARED_BASE, SHARED_GAP = 0x1000, 256
_REGISTER, _IMMEDIATE, _SPECIAL, _IGNORED = range(4)  # instruction.h: OperandKind
_FIELDS = library.ROW.names
_OUT, _IN = (library.ROW.fields[name][1] // 8 for name in ("out", "in"))

_PARAMETER = (
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
    r"(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+(\d+)\s+)?)?([\w$]+)(?:\[(\d+)\])?"
)
_VARIABLE = r"(\.extern\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?;?"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel: where it lies in their bytes, and what a pointer is aligned to."""

    name: str
    offset: int
    bytes: int
    pointer_alignment: int


@dataclass(frozen=True)
class Variable:
    """A variable in shared memory, and the address it has here."""

    alignment: int
    bytes: int
    address: int


@dataclass
class Kernel:
    """A decoded entry.

    Attributes:
        name: of the entry.
        parameters: in order.
        code: rows of `library.ROW`.
        text: the statement of each instruction.
        registers: how many there are.
        shared: variables by name.
        threads: of a block, as ``.reqntid`` or ``.maxntid`` says; 0: any number.
        exact_threads: whether it is ``.reqntid``.
        places: line to what the compiler said about it.
        unrounded: float sums and products without a rounding, which ptxas may fuse.
    """

    name: str
    parameters: list[Parameter] = field(default_factory=list)
    code: np.ndarray | None = None
    text: list[str] = field(default_factory=list)
    registers: int = 0
    shared: dict[str, Variable] = field(default_factory=dict)
    threads: int = 0
    exact_threads: bool = False
    places: dict[int, str] = field(default_factory=dict)
    unrounded: list[str] = field(default_factory=list)

    @property
    def parameter_bytes(self) -> int:
        return max((p.offset + p.bytes for p in self.parameters), default=0)


def decode(text: str, shared_bytes: int = 0) -> Kernel:
    """An entry's text (of `listing.entries`) as a `Kernel`.

    Args:
        text: of one entry.
        shared_bytes: of dynamic shared memory.

    Raises:
        Unknown: it holds what is not modelled.
    """
    return _Decoder(text, shared_bytes).kernel


class _Decoder(Irregular):
    """Holds registers, scopes and labels while the statements of one kernel are read."""

    def __init__(self, text: str, shared_bytes: int):
        listing = read(text)
        self.kernel = Kernel(listing.name, places=listing.places)
        self.operations, self.types, self.comparisons = library.names()
        self.registers: dict[str, int] = {}
        self.declared: dict[str, str] = {}  # register, or prefix with "<>", to its type
        self.scopes: list[dict[str, str]] = [{}]  # names of a block's own registers
        self.symbols: dict[str, int] = {}
        self.rows: list[list[int]] = []
        self.jumps: list[tuple[int, str]] = []
        self.shared_bytes = shared_bytes
        self._read_parameters(listing.parameters)
        n = re.search(r"\.(reqntid|maxntid)\s+(\d+)", listing.directives)
        if n:
            self.kernel.threads, self.kernel.exact_threads = int(n[2]), n[1] == "reqntid"
        for variable in listing.shared:
            self._read_shared(variable)
        labels = self._read_body(listing.statements)
        for row, label in self.jumps:
            self.rows[row][_FIELDS.index("target")] = labels[label]
        self.kernel.code = np.array(self.rows, dtype=np.int64).view(library.ROW)[:, 0]
        self.kernel.registers = len(self.registers)

    def _read_body(self, statements: list[Statement]) -> dict[str, int]:
        labels = {}
        for statement in statements:
            if statement.kind == "label":
                labels[statement.text] = len(self.rows)
            elif statement.kind == "{":
                self.scopes.append({})
            elif statement.kind == "}":
                self.scopes.pop()
            else:
                try:
                    self._read_statement(statement)
                except (Unknown, KeyError, ValueError, IndexError) as error:
                    where = f"{self.kernel.name}, line {statement.line}: {statement.text!r}"
                    raise Unknown(f"{where}: {error!r}") from error
        return labels

    def _read_parameters(self, text: str) -> None:
        offset = 0
        for part in filter(None, (p.strip() for p in text.split(","))):
            m = re.fullmatch(_PARAMETER, part)
            if not m:
                raise Unknown(f"parameter {part!r}")
            size = BITS[m[2]] // 8
            alignment = int(m[1] or size)
            size *= int(m[5] or 1)
            offset = -(-offset // alignment) * alignment
            self.kernel.parameters.append(Parameter(m[4], offset, size, int(m[3] or 0)))
            self.symbols[m[4]] = PARAMETER_BASE + offset
            offset += size

    def _read_shared(self, text: str) -> None:
        """Place a variable exactly as aligned as it is declared, and apart from the others."""
        m = re.fullmatch(_VARIABLE, text.strip())
        if not m:
            raise Unknown(f"shared variable {text!r}")
        element = BITS[m[3]] // 8
        alignment = int(m[2] or element)
        size = self.shared_bytes if m[1] else element * int(m[5] or 1)
        ends = [v.address + v.bytes for v in self.kernel.shared.values()]
        at = max(ends, default=SHARED_BASE) + SHARED_GAP
        at = -(-at // (2 * alignment)) * 2 * alignment + alignment
        self.kernel.shared[m[4]] = Variable(alignment, size, at)
        self.symbols[m[4]] = at

    # --- statements ------------------------------------------------------------------------------

    def _read_statement(self, statement: Statement) -> None:
        text = statement.text
        if text.startswith(".reg"):
            self._declare(text)
            return
        if text.startswith((".shared", ".extern")):
            self._read_shared(text)
            return
        m = re.fullmatch(r"(?:@(!?)([%\w]+)\s+)?([a-z][\w.:]*)\s*(.*)", text, re.S)
        require(m is not None, "a directive")
        self.statement = statement
        self.guard = (self.register(m[2]), int(bool(m[1]))) if m[2] else (-1, 0)
        mnemonic, *modifiers = m[3].split(".")
        operands = [p.strip() for p in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", m[4])]
        if mnemonic in SIMPLE:
            self._simple(SIMPLE[mnemonic], modifiers, operands)
        else:
            more = getattr(self, f"do_{mnemonic}", None)
            require(more is not None, "an instruction that is not modelled")
            more(modifiers, operands)

    def _declare(self, text: str) -> None:
        m = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text)
        for name in map(str.strip, m[2].split(",")):
            if several := re.fullmatch(r"(%?\w+)<(\d+)>", name):
                self.declared[several[1] + "<>"] = m[1]
                continue
            own = f"%scoped{len(self.declared)}_{name}" if len(self.scopes) > 1 else name
            self.scopes[-1][name] = own
            self.declared[own] = m[1]

    def _simple(self, simple: Simple, modifiers: list[str], operands: list[str]) -> None:
        """Instructions of the form ``op.modifiers.type d, a, b, c``."""
        operands = list(operands)
        if simple.mixed and modifiers[-2:-1] == ["f32"] and modifiers[-1] in ("f16", "bf16"):
            self._widen(operands, simple.mixed, modifiers[-1])
            modifiers = modifiers[:-1]
        *modifiers, type_ = modifiers
        require(type_ in simple.types, f"type {type_}")
        unknown = set(modifiers) - set(simple.modifiers)
        require(not unknown, f"modifiers {unknown}")
        is_float = type_[0] in "fb" and type_[-2:] in ("32", "64", "x2")
        for one_of in simple.float_needs if is_float else simple.integer_needs:
            require(set(one_of) & set(modifiers), f"none of {one_of}")
        require(len(operands) == 1 + simple.inputs, "number of operands")
        if is_float and simple.operation in ("ADD", "SUB", "MUL") and not rounded(modifiers):
            self.kernel.unrounded.append(self.statement.text)
        self.emit(
            simple.operation,
            type_,
            self.operands(operands[:1], type_),
            self.operands(operands[1:], type_),
            flags=flags_of(modifiers),
            rounding=rounding_of(modifiers),
            mode={"hi": 1, "wide": 2}.get(next(iter(set(modifiers) & {"hi", "wide"}), ""), 0),
        )

    def _widen(self, operands: list[str], count: int, narrow: str) -> None:
        """Of sm_100: float32 arithmetic on operands of 16 bits, which are widened exactly."""
        for k in range(1, 1 + count):
            name = f"%widened{len(self.registers)}"
            self.declared[name] = "f32"
            to = [(_REGISTER, self.register(name))]
            self.emit(
                "CVT", "f32", to, self.operands([operands[k]], narrow), from_type=narrow, extra=32
            )
            operands[k] = name

    # --- operands --------------------------------------------------------------------------------

    def type_of(self, name: str) -> str:
        """The type a register was declared with; empty where it was not."""
        name = self._own(name)
        return self.declared.get(name) or self.declared.get(re.sub(r"\d+$", "<>", name), "")

    def _own(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), name)

    def register(self, name: str) -> int:
        own = self._own(name)
        if own not in self.registers:
            require(self.type_of(name), f"register {name} is not declared")
            self.registers[own] = len(self.registers)
        return self.registers[own]

    def operand(self, text: str, type_: str) -> tuple[int, int]:
        """A register, a number, an address or a special register as (kind, value)."""
        text = text.strip()
        if text == "_":
            return _IGNORED, 0
        if text in SPECIAL:
            return _SPECIAL, SPECIAL.index(text)
        if text.startswith("%") or self._own(text) != text or text in self.scopes[0]:
            return _REGISTER, self.register(text)
        if text in self.symbols:
            return _IMMEDIATE, self.symbols[text]
        if m := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
            return _IMMEDIATE, int(m[1], 16)
        if m := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text):
            return _IMMEDIATE, struct.unpack("<q", int(m[1], 16).to_bytes(8, "little"))[0]
        if m := re.fullmatch(r"(-?)(0[xX][0-9a-fA-F]+|\d+)U?", text):
            value = int(m[2], 0) * (-1 if m[1] else 1)
            value = int(value != 0) if type_ == "pred" else value & ((1 << 64) - 1)
            return _IMMEDIATE, value - (1 << 64) if value >> 63 else value
        raise Unknown(f"operand {text!r}")

    def operands(self, texts: list[str], type_: str) -> list[tuple[int, int]]:
        return [self.operand(text, type_) for text in texts]

    def vector(self, text: str, type_: str) -> list[tuple[int, int]]:
        """The elements of ``{a, b}``, or the one operand that it is."""
        return self.operands(re.split(r"\s*,\s*", text.strip("{} \t")), type_)

    def address(self, text: str) -> tuple[tuple[int, int], int]:
        """``[base + offset]``."""
        m = re.fullmatch(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\d+|-?0x[0-9a-fA-F]+)\s*)?\]", text)
        if not m:
            raise Unknown(f"address {text!r}")
        return self.operand(m[1], "u64"), int(m[2] or "0", 0)

    def emit(
        self, operation, type_="b32", out=(), inputs=(), *, from_type=None, flags=0, **fields
    ) -> int:
        """Append an instruction; gives its row."""
        row = [0] * (library.ROW.itemsize // 8)
        row[:10] = [
            self.operations[operation],
            self.types[type_],
            self.types[from_type] if from_type else 0,
            flags,
            *self.guard,
            0,
            self.statement.line,
            len(out),
            len(inputs),
        ]
        for name, value in fields.items():
            row[_FIELDS.index(name)] = value
        row[_OUT : _OUT + 2 * len(out)] = itertools.chain(*out)
        row[_IN : _IN + 2 * len(inputs)] = itertools.chain(*inputs)
        self.rows.append(row)
        self.kernel.text.append(self.statement.text)
        return len(self.rows) - 1
