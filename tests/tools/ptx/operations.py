"""PTX instructions whose operands all have one type, as a table, and names of modifiers."""

from __future__ import annotations

from typing import NamedTuple

from tests.tools.ptx.listing import Unknown

FTZ, SATURATE, KEEP_NAN, APPROXIMATE = 1, 2, 4, 8  # simulator/instruction.h: Flag
ROUNDINGS = ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi")
SPECIAL = (
    "%tid.x %tid.y %tid.z %ntid.x %ntid.y %ntid.z %ctaid.x %ctaid.y %ctaid.z %nctaid.x "
    "%nctaid.y %nctaid.z %laneid %warpid %lanemask_lt"
).split()
BITS = (
    {"pred": 1, "f16x2": 32, "bf16x2": 32, "f32x2": 64, "bf16": 16, "b128": 128}
    | {f"{kind}{bits}": bits for kind in "bus" for bits in (8, 16, 32, 64)}
    | {f"f{bits}": bits for bits in (16, 32, 64)}
)
INTEGERS = {"u16", "s16", "u32", "s32", "u64", "s64"}
FLOATS = {"f32", "f64"}
BIT_TYPES = {"b16", "b32", "b64"}
_ROUND = ROUNDINGS[:4]
_WIDTHS = ("lo", "hi", "wide")


def require(holds: object, what: str) -> None:
    """Raise `Unknown` where it does not hold."""
    if not holds:
        raise Unknown(what)


def flags_of(modifiers: list[str]) -> int:
    """``instruction.h: Flag``."""
    names = {"ftz": FTZ, "sat": SATURATE, "NaN": KEEP_NAN}
    names |= {"approx": APPROXIMATE, "full": APPROXIMATE}
    return sum({names[m] for m in modifiers if m in names})


def rounding_of(modifiers: list[str]) -> int:
    """``instruction.h: Rounding``; to nearest where nothing is said."""
    return next((ROUNDINGS.index(m) for m in modifiers if m in ROUNDINGS), 0)


def rounded(modifiers: list[str]) -> bool:
    """Whether a float instruction says how it is rounded."""
    return any(m in ROUNDINGS for m in modifiers)


class Simple(NamedTuple):
    """An instruction ``op.modifiers.type d, a, b, c``.

    Attributes:
        operation: the simulator's.
        inputs: how many.
        types: those it may have.
        modifiers: those it may have.
        float_needs: groups of which a float instruction must have one.
        integer_needs: groups of which one of integers must have one.
        mixed: inputs that may be of 16 bits beside float32 ones.
    """

    operation: str
    inputs: int
    types: set[str]
    modifiers: tuple[str, ...] = ()
    float_needs: tuple[tuple[str, ...], ...] = ()
    integer_needs: tuple[tuple[str, ...], ...] = ()
    mixed: int = 0


_ALL = INTEGERS | FLOATS
_SUM = Simple("ADD", 2, _ALL | {"f32x2"}, (*_ROUND, "ftz", "sat"), mixed=1)
_LEAST = Simple("MIN", 2, _ALL, ("ftz", "NaN"))
_LOGIC = Simple("AND", 2, BIT_TYPES | {"pred"})
_UNARY = Simple("NEG", 1, _ALL, ("ftz",))
_ESTIMATE = Simple("EX2", 1, {"f32"}, ("approx", "ftz"), float_needs=(("approx",),))
_PRODUCT = Simple("MUL", 2, _SUM.types, (*_SUM.modifiers, *_WIDTHS), integer_needs=(_WIDTHS,))
_ROOT = Simple("RCP", 1, FLOATS, (*_ROUND, "approx", "ftz"), float_needs=((*_ROUND, "approx"),))

SIMPLE = {
    "add": _SUM,
    "sub": _SUM._replace(operation="SUB"),
    "mul": _PRODUCT,
    "mad": _PRODUCT._replace(operation="MAD", inputs=3, types=INTEGERS, modifiers=_WIDTHS),
    "fma": _SUM._replace(
        operation="FMA", inputs=3, types=FLOATS | {"f32x2"}, float_needs=(_ROUND,), mixed=2
    ),
    "div": Simple(
        "DIV", 2, _ALL, (*_ROUND, "full", "approx", "ftz"), ((*_ROUND, "full", "approx"),)
    ),
    "rem": Simple("REM", 2, INTEGERS),
    "min": _LEAST,
    "max": _LEAST._replace(operation="MAX"),
    "neg": _UNARY,
    "abs": _UNARY._replace(operation="ABS"),
    "copysign": Simple("COPYSIGN", 2, {"f32"}),
    "rcp": _ROOT,
    "sqrt": _ROOT._replace(operation="SQRT"),
    "rsqrt": _ESTIMATE._replace(operation="RSQRT"),
    "ex2": _ESTIMATE,
    "lg2": _ESTIMATE._replace(operation="LG2"),
    "tanh": _ESTIMATE._replace(operation="TANH"),
    "and": _LOGIC,
    "or": _LOGIC._replace(operation="OR"),
    "xor": _LOGIC._replace(operation="XOR"),
    "not": _LOGIC._replace(operation="NOT", inputs=1),
    "shl": Simple("SHL", 2, BIT_TYPES),
    "shr": Simple("SHR", 2, BIT_TYPES | INTEGERS),
    "bfe": Simple("BFE", 3, {"u32", "s32", "u64", "s64"}),
    "bfi": Simple("BFI", 4, {"b32", "b64"}),
    "popc": Simple("POPC", 1, {"b32", "b64"}),
    "clz": Simple("CLZ", 1, {"b32", "b64"}),
    "brev": Simple("BREV", 1, {"b32", "b64"}),
    "selp": Simple("SELP", 3, BIT_TYPES | _ALL | {"f16", "bf16"}),
}
