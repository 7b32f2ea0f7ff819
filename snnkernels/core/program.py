"""A traced neuron as a program: a short list of elementwise operations, and its adjoint.

`OPERATIONS` is the one table of what an instruction means. A program has three parts: what depends
on parameters and numbers alone (``once``, at the parameters' own shapes), one step forward, and one
step of the adjoint, which may use every value of the other two. Its text is its identity: equal
texts are the same program, in any process. No number stands in it: literals are slots ``n0, n1,
...``, whose values are passed with each call.

Values are named by kind: ``x0`` inputs, ``v0`` states before the step, ``p0`` parameters, ``n0``
numbers, ``g0`` gradients on outputs, ``d0`` gradients on the states after the step, ``t0``
results of instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


def _compare(compare: Callable) -> Callable:
    return lambda a, b: compare(a, b).to(a.dtype)


class Operation(NamedTuple):
    """What an instruction does.

    Attributes:
        arity: number of arguments.
        run: its meaning in PyTorch, on tensors of one floating dtype.
        infix: how equations show it, None for a function of its name.
    """

    arity: int
    run: Callable[..., Tensor]
    infix: str | None = None


# A condition is 1.0 or 0.0, so that "and" is mul and "or" is max. min and max give NaN where either
# argument is NaN, and the first argument of two equal ones. round is half to even. csrc/program.h
# holds the same names in the same order.
OPERATIONS: dict[str, Operation] = {
    "add": Operation(2, torch.add, "+"),
    "sub": Operation(2, torch.sub, "-"),
    "mul": Operation(2, torch.mul, "*"),
    "div": Operation(2, torch.true_divide, "/"),
    "min": Operation(2, lambda a, b: torch.where((a <= b) | a.isnan(), a, b)),
    "max": Operation(2, lambda a, b: torch.where((a >= b) | a.isnan(), a, b)),
    "pow": Operation(2, torch.pow, "**"),
    "ge": Operation(2, _compare(torch.ge), ">="),
    "gt": Operation(2, _compare(torch.gt), ">"),
    "le": Operation(2, _compare(torch.le), "<="),
    "lt": Operation(2, _compare(torch.lt), "<"),
    "eq": Operation(2, _compare(torch.eq), "=="),
    "ne": Operation(2, _compare(torch.ne), "!="),
    "where": Operation(3, lambda c, a, b: torch.where(c > 0, a, b)),
    "neg": Operation(1, torch.neg),
    "abs": Operation(1, torch.abs),
    "sign": Operation(1, torch.sign),
    "sqrt": Operation(1, torch.sqrt),
    "reciprocal": Operation(1, torch.reciprocal),
    "exp": Operation(1, torch.exp),
    "log": Operation(1, torch.log),
    "tanh": Operation(1, torch.tanh),
    "sigmoid": Operation(1, torch.sigmoid),
    "sin": Operation(1, torch.sin),
    "cos": Operation(1, torch.cos),
    "floor": Operation(1, torch.floor),
    "trunc": Operation(1, torch.trunc),
    "round": Operation(1, torch.round),
    "complement": Operation(1, lambda a: 1 - a),
}
COMMUTATIVE = ("add", "mul", "eq", "ne")


class Instruction(NamedTuple):
    """``target = operation(*arguments)``."""

    target: str
    operation: str
    arguments: tuple[str, ...]


class Program(NamedTuple):
    """A parsed program; see the module.

    Attributes:
        inputs: how many x there are.
        states: how many states.
        parameters: how many tensors of parameters.
        numbers: how many number slots.
        once: instructions on parameters and numbers alone.
        forward: instructions of one step.
        results: values of the outputs, then of the states after the step.
        adjoint: instructions of one step backward.
        gradients: values of the gradients on inputs, states before the step and parameters, None
            where it is zero.
    """

    inputs: int
    states: int
    parameters: int
    numbers: int
    once: tuple[Instruction, ...]
    forward: tuple[Instruction, ...]
    results: tuple[str, ...]
    adjoint: tuple[Instruction, ...]
    gradients: tuple[str | None, ...]

    @property
    def outputs(self) -> int:
        return len(self.results) - self.states

    def text(self) -> str:
        """The canonical text."""
        counts = zip(
            ("inputs", "states", "parameters", "numbers"),
            (self.inputs, self.states, self.parameters, self.numbers),
            strict=True,
        )
        lines = [" ".join(f"{name} {count}" for name, count in counts)]
        for part, returned in (("once", None), ("forward", self.results), ("adjoint", None)):
            lines.append(part)
            lines += [
                f"{i.target} = {i.operation} {' '.join(i.arguments)}" for i in getattr(self, part)
            ]
            if returned is not None:
                lines.append(f"return {' '.join(returned)}")
        lines.append(f"return {' '.join(name or '-' for name in self.gradients)}")
        return "\n".join(lines) + "\n"


@lru_cache(maxsize=256)
def parse(text: str) -> Program:
    """The program of a canonical text."""
    head, *lines = text.splitlines()
    words = head.split()
    counts = {name: int(count) for name, count in zip(words[::2], words[1::2], strict=True)}
    parts: dict[str, list[Instruction]] = {}
    returned: list[tuple[str | None, ...]] = []
    for line in lines:
        words = line.split()
        if len(words) == 1 and words[0] in ("once", "forward", "adjoint"):
            part = parts.setdefault(words[0], [])
        elif words[0] == "return":
            returned.append(tuple(None if name == "-" else name for name in words[1:]))
        else:
            part.append(Instruction(words[0], words[2], tuple(words[3:])))
    results, gradients = returned
    return Program(
        **counts,
        once=tuple(parts["once"]),
        forward=tuple(parts["forward"]),
        results=results,
        adjoint=tuple(parts["adjoint"]),
        gradients=gradients,
    )


def is_number(value: str | float | None) -> bool:
    """Whether a value of a `Builder` is a number, open or not."""
    return isinstance(value, float) or value is not None and value[0] == "n"


class Builder:
    """Collects instructions, each once, while a step is traced.

    An argument is the name of a value or a float; numbers whose values are open have names, ``n0,
    n1, ...``, too. Nothing here changes a bit of a result, and nothing depends on the value of a
    number, but for the comparison of a condition with 0.
    """

    def __init__(self) -> None:
        self.instructions: list[tuple[str, str, tuple]] = []
        self._known: dict[tuple, str] = {}
        self._conditions: set[str] = set()

    def is_condition(self, value: str | float) -> bool:
        return value in self._conditions

    def condition(self, value: str | float) -> str | float:
        """The value as 1.0 where it is not 0, else 0.0."""
        return value if self.is_condition(value) else self.emit("ne", value, 0.0)

    def emit(self, operation: str, *arguments: str | float) -> str | float:
        """The name of the result, of an earlier instruction where there is an equal one."""
        a, *rest = arguments
        if operation == "mul" and a == 1.0 and is_number(rest[0]):  # a number as a tensor
            return rest[0]
        if self.is_condition(a) and rest == [0.0]:  # s > 0 of a spike
            if operation in ("gt", "ne"):
                return a
            if operation in ("le", "eq"):
                return self.emit("complement", a)
        if operation == "where" and rest[0] == rest[1] and isinstance(rest[0], str):
            return rest[0]
        if operation == "neg":
            inner = next((i for i in self.instructions if i[0] == a), None)
            if inner is not None and inner[1] == "neg":
                return inner[2][0]
        key = (operation, *map(repr, arguments))
        if operation in COMMUTATIVE:
            key = (operation, *sorted(key[1:]))
        if key not in self._known:
            name = f"t{len(self.instructions)}"
            self._known[key] = name
            self.instructions.append((name, operation, arguments))
            is_mask = operation in ("ge", "gt", "le", "lt", "eq", "ne", "complement")
            if is_mask or (operation in ("mul", "max") and all(map(self.is_condition, arguments))):
                self._conditions.add(name)
        return self._known[key]


def build(
    counts: tuple[int, int, int],
    instructions: Sequence[tuple[str, str, tuple]],
    results: Sequence[str | float],
    gradients: Sequence[str | float | None],
) -> tuple[Program, tuple[str | float, ...]]:
    """Sort instructions into the parts of a program and make slots of its numbers.

    An open number has one slot, a float one for each of its uses: which of them are equal is no
    part of the program.

    Args:
        counts: of inputs, states and parameters.
        instructions: in an order in which they can run; arguments are names or floats.
        results: as in `Program`, names or floats.
        gradients: as in `Program`, names, floats or None.

    Returns:
        The program and, for each of its slots, the name of an open number or a float.
    """
    forward = _needed(instructions, results)
    both = _needed(instructions, [*results, *gradients])
    constant = {f"p{k}" for k in range(counts[2])}
    for name, _, arguments in instructions:
        if all(is_number(a) or a in constant for a in arguments):
            constant.add(name)
    once = [i for i in instructions if i[0] in both and i[0] in constant]
    step = [i for i in instructions if i[0] in forward and i[0] not in constant]
    back = [i for i in instructions if i[0] in both and i[0] not in forward | constant]
    names: dict[str, str] = {}
    slots: dict[str, str] = {}
    numbers: list[str | float] = []

    def rename(value: str | float | None) -> str | None:
        if is_number(value) and value not in slots:
            numbers.append(value)
            if isinstance(value, float):
                return f"n{len(numbers) - 1}"
            slots[value] = f"n{len(numbers) - 1}"
        return value if value is None else slots.get(value) or names.get(value, value)

    def part(chosen: list) -> tuple[Instruction, ...]:
        out = []
        for name, operation, arguments in chosen:
            arguments = tuple(rename(a) for a in arguments)
            names[name] = f"t{len(names)}"
            out.append(Instruction(names[name], operation, arguments))
        return tuple(out)

    parts = part(once), part(step)
    results = tuple(rename(r) for r in results)
    adjoint = part(back)
    gradients = tuple(rename(g) for g in gradients)
    program = Program(*counts, len(numbers), *parts, results, adjoint, gradients)
    return program, tuple(numbers)


def _needed(instructions: Iterable[tuple], wanted: Iterable) -> set[str]:
    """The names of the instructions that ``wanted`` is made of."""
    needed = {w for w in wanted if isinstance(w, str)}
    for name, _, arguments in reversed(list(instructions)):
        if name in needed:
            needed.update(a for a in arguments if isinstance(a, str))
    return needed


def pruned(instructions: Sequence[Instruction], wanted: Iterable[str | None]) -> list[Instruction]:
    """The instructions that ``wanted`` values are made of, in their order."""
    needed = _needed(instructions, wanted)
    return [i for i in instructions if i.target in needed]


_PRECEDENCE = {"**": 4, "*": 3, "/": 3, "+": 2, "-": 2}


def equations(
    program: Program,
    numbers: Sequence[float],
    names: tuple[Sequence[str], Sequence[str], Sequence[str]],
) -> str:
    """One step as text that a person can read.

    Args:
        program: of which once and forward are shown.
        numbers: values of the slots.
        names: of inputs, states and parameters.
    """
    shown = {
        f"{k}{i}": name for k, of in zip("xvp", names, strict=True) for i, name in enumerate(of)
    }
    shown |= {f"v{i}": f"{name}[t-1]" for i, name in enumerate(names[1])}
    shown |= {f"n{i}": f"{value:.9g}" for i, value in enumerate(numbers)}
    steps = pruned([*program.once, *program.forward], program.results)
    uses: dict[str, int] = {}
    for name in [*(a for i in steps for a in i.arguments), *program.results]:
        uses[name] = uses.get(name, 0) + 1
    text = {name: (value, 9) for name, value in shown.items()}  # with its precedence
    lines = []

    def show(name: str, least: int) -> str:
        value, precedence = text[name]
        return value if precedence >= least else f"({value})"

    temporaries = 0
    for target, operation, arguments in steps:
        infix = OPERATIONS[operation].infix
        if infix is None:
            value = f"{operation}({', '.join(show(a, 0) for a in arguments)})", 9
        else:
            rank = _PRECEDENCE.get(infix, 1)
            left, right = show(arguments[0], rank), show(arguments[1], rank + 1)
            value = f"{left} {infix} {right}", rank
        if uses[target] > 1:
            temporaries += 1
            lines.append(f"y{temporaries} = {value[0]}")
            value = f"y{temporaries}", 9
        text[target] = value
    outputs = [f"output {k}" for k in range(program.outputs)]
    for name, value in zip(
        [*outputs, *(f"{n}[t]" for n in names[1])], program.results, strict=True
    ):
        lines.append(f"{name} = {show(value, 0)}")
    return "\n".join(lines)
