"""What the operations of ATen that a step may use are made of, in instructions of a program.

Whatever rounds once where its parts round several times is refused: no bit may change.
"""

from __future__ import annotations

from collections.abc import Callable

from snnkernels.core.program import Builder

Value = str | float


class Refused(ValueError):
    """A step that cannot be traced, with the reason as a sentence."""


def _add(e: Builder, a: Value, b: Value, alpha: float = 1) -> Value:
    if alpha not in (1, -1):
        raise Refused("add and sub with alpha round once where a product and a sum round twice")
    return e.emit("add" if alpha == 1 else "sub", a, b)


def _pow(e: Builder, a: Value, b: Value) -> Value:
    if isinstance(b, float):  # as PyTorch does it
        if b in (0.5, 1.0, 2.0, 3.0):
            square = a if b < 2 else e.emit("mul", a, a)
            return e.emit("sqrt", a) if b == 0.5 else e.emit("mul", square, a) if b == 3 else square
        if b == -1.0:
            return e.emit("reciprocal", a)
        if b == -2.0:
            return e.emit("reciprocal", e.emit("mul", a, a))
        if b == -0.5:
            return e.emit("reciprocal", e.emit("sqrt", a))
        if b == 0.0:
            return 1.0
    return e.emit("pow", a, b)


def _clamp(e: Builder, a: Value, low: Value | None = None, high: Value | None = None) -> Value:
    if low is not None:
        a = e.emit("max", a, low)
    return a if high is None else e.emit("min", a, high)


def _div(e: Builder, a: Value, b: Value, rounding_mode: str | None = None) -> Value:
    if rounding_mode == "floor":  # PyTorch's is not the floor of the quotient
        raise Refused("a division that rounds down is not in the table; write (a / b).floor()")
    quotient = e.emit("div", a, b)
    return quotient if rounding_mode is None else e.emit("trunc", quotient)


def _round(e: Builder, a: Value, decimals: int = 0) -> Value:
    if decimals:
        raise Refused("round takes no decimals here")
    return e.emit("round", a)


def _or(e: Builder, a: Value, b: Value) -> Value:
    return e.emit("max", e.condition(a), e.condition(b))


def _tanh_backward(e: Builder, g: Value, y: Value) -> Value:
    return e.emit("mul", g, e.emit("sub", 1.0, e.emit("mul", y, y)))


def _sigmoid_backward(e: Builder, g: Value, y: Value) -> Value:
    return e.emit("mul", e.emit("mul", g, e.emit("sub", 1.0, y)), y)


def _hardtanh_backward(e: Builder, g: Value, y: Value, low: Value, high: Value) -> Value:
    outside = e.emit("max", e.emit("le", y, low), e.emit("ge", y, high))
    return e.emit("where", outside, 0.0, g)


LOWER: dict[str, Callable[..., Value]] = {
    "add": _add,
    "sub": lambda e, a, b, alpha=1: _add(e, a, b, -alpha),
    "rsub": lambda e, a, b, alpha=1: _add(e, b, a, -alpha),
    "div": _div,
    "true_divide": _div,
    "pow": _pow,
    "square": lambda e, a: e.emit("mul", a, a),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda e, a, high: _clamp(e, a, None, high),
    "hardtanh": _clamp,
    "hardtanh_backward": _hardtanh_backward,
    "relu": lambda e, a: e.emit("max", a, 0.0),
    "minimum": lambda e, a, b: e.emit("min", a, b),
    "maximum": lambda e, a, b: e.emit("max", a, b),
    "sgn": lambda e, a: e.emit("sign", a),
    "ceil": lambda e, a: e.emit("neg", e.emit("floor", e.emit("neg", a))),
    "round": _round,
    "where": lambda e, c, a, b: e.emit("where", e.condition(c), a, b),
    "masked_fill": lambda e, a, m, b: e.emit("where", e.condition(m), b, a),
    "logical_and": lambda e, a, b: e.emit("mul", e.condition(a), e.condition(b)),
    "logical_or": _or,
    "logical_not": lambda e, a: e.emit("complement", e.condition(a)),
    "logical_xor": lambda e, a, b: e.emit("ne", e.condition(a), e.condition(b)),
    "threshold_backward": lambda e, g, y, t: e.emit("where", e.emit("le", y, t), 0.0, g),
    "tanh_backward": _tanh_backward,
    "sigmoid_backward": _sigmoid_backward,
}
for _name in (
    "mul",
    "ge",
    "gt",
    "le",
    "lt",
    "eq",
    "ne",
    "neg",
    "abs",
    "sign",
    "sqrt",
    "reciprocal",
):
    LOWER[_name] = lambda e, *a, _name=_name: e.emit(_name, *a)
for _name in ("exp", "log", "tanh", "sigmoid", "sin", "cos", "floor", "trunc"):
    LOWER[_name] = lambda e, *a, _name=_name: e.emit(_name, *a)
for _name in ("and", "or", "not", "xor"):
    LOWER[f"bitwise_{_name}"] = LOWER[f"logical_{_name}"]

VIEWS = {"view", "_unsafe_view", "unsqueeze", "squeeze", "expand", "detach", "alias", "t"}
VIEWS |= {"transpose", "permute", "select", "unbind", "slice", "split", "as_strided", "reshape"}
COPIES = {"clone", "_to_copy", "lift_fresh", "lift_fresh_copy", "contiguous", "copy"}
FULL = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0, "fill": 1}
CONSTANT = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "zero": 0.0}
CONSTANT |= {"_efficientzerotensor": 0.0}
CONSTANT |= {"ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}
EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
_RANDOM = ("rand", "bernoulli", "normal", "dropout", "uniform", "poisson", "multinomial")
_FUSED = {"addcmul", "addcdiv", "lerp", "silu", "rsqrt", "softplus", "gelu", "mish", "elu", "celu"}
_BRANCHES = {"_local_scalar_dense", "is_nonzero", "item", "equal"}


def why_not(name: str) -> str:
    """Why a step may not use this operation of ATen, as a sentence."""
    if name in _BRANCHES:
        return "the value of a tensor decides what happens next; use torch.where instead of if"
    if any(word in name for word in _RANDOM):
        return "random numbers cannot be traced; draw them outside and pass them as an input"
    if name in _FUSED:
        return "it rounds in its own way; write it with + - * / and exp"
    return (
        "a step is elementwise over neurons: it may use "
        f"{', '.join(sorted(k for k in LOWER if not k.endswith('_backward')))}; a sum over neurons "
        "or a product with a matrix belongs outside of the neuron"
    )
