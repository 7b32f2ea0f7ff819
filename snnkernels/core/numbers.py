"""Numbers of a step while it is traced: arithmetic on them is written down, to be done per call.

A parameter that is a Python number is a `Number` there, so that one trace serves all its values.
What Python makes of it (``1 - alpha``) is kept as an expression, evaluated for each value by the
same operators in the same double precision. PyTorch gets a stand-in, a float that nothing else
equals. Where a step needs the value itself, as to branch on it, `LooksAt` says so.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

# The name of a parameter, a constant, or a function and its arguments.
Expression = str | int | float | tuple


class LooksAt(Exception):
    """A step needs the values of the parameters ``names``; it is traced again for each of them."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(f"the step looks at the value of {', '.join(sorted(names))}")
        self.names = names


def evaluate(expression: Expression, values: Mapping[str, int | float]) -> int | float:
    """The value of an expression where the parameters have these values."""
    if isinstance(expression, str):
        return values[expression]
    if isinstance(expression, tuple):
        function, *arguments = expression
        return function(*(evaluate(argument, values) for argument in arguments))
    return expression


def _names(expression: Expression) -> frozenset[str]:
    if isinstance(expression, str):
        return frozenset((expression,))
    arguments = expression[1:] if isinstance(expression, tuple) else ()
    return frozenset().union(*map(_names, arguments))


class Number:
    """A number parameter, or what arithmetic makes of some.

    Args:
        expression: what it is.
        kind: int or float; isinstance says so.
        known: all numbers of the trace, by their stand-ins.
    """

    def __init__(self, expression: Expression, kind: type, known: dict[float, Number]) -> None:
        self.expression, self.kind, self.known = expression, kind, known
        self.name = f"n{len(known)}"
        self.stand_in = 0.3907459213684051 + 2.0**-40 * len(known)
        known[self.stand_in] = self

    @property
    def __class__(self) -> type:
        return self.kind

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        named = {name: _stand_in(value) for name, value in (kwargs or {}).items()}
        return func(*map(_stand_in, args), **named)

    def look(self, *_, **__):
        """Take the value itself."""
        raise LooksAt(_names(self.expression))

    def __getattr__(self, name: str):
        if name.startswith("__"):  # what PyTorch and Python ask of any object
            raise AttributeError(name)
        self.look()

    def __repr__(self) -> str:
        return f"Number({self.expression!r})"


def _stand_in(argument: object) -> object:
    return argument.stand_in if type(argument) is Number else argument


def _arithmetic(function: Callable, reflected: bool) -> Callable:
    def compute(self: Number, *others):
        if not all(type(other) in (Number, int, float) for other in others):
            return NotImplemented
        arguments = (*others, self) if reflected else (self, *others)
        kinds = (a.kind if type(a) is Number else type(a) for a in arguments)
        expression = function, *(a.expression if type(a) is Number else a for a in arguments)
        for number in self.known.values():
            if repr(number.expression) == repr(expression):  # 1 is not 1.0, 0.0 not -0.0
                return number
        return Number(expression, type(function(*(kind(1) for kind in kinds))), self.known)

    return compute


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(Number, f"__{_name}__", _arithmetic(getattr(operator, _name), False))
    setattr(Number, f"__r{_name}__", _arithmetic(getattr(operator, _name), True))
for _name in ("neg", "pos", "abs"):
    setattr(Number, f"__{_name}__", _arithmetic(getattr(operator, _name), False))
for _name in ("bool", "float", "int", "index", "hash", "str", "format", "complex", "divmod"):
    setattr(Number, f"__{_name}__", Number.look)
for _name in ("round", "floor", "ceil", "trunc", "eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Number, f"__{_name}__", Number.look)
