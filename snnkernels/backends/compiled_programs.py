"""Which of the programs that are compiled ahead of time does what a traced one does.

A compiled loop reads its constants from slots. What they are made of is decided before the first
step, so a neuron with some parameters as numbers runs in the loops of the one with all of them as
tensors: they have the same operations, in the same order, on other constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from snnkernels.core.program import COMMUTATIVE, Instruction, Program, parse


class Match(NamedTuple):
    """How a compiled program stands for another one.

    Attributes:
        index: of the compiled program.
        program: the compiled one.
        constants: by its constants, the values that take their place.
        sums: for each parameter of the other program, which of its sums is the gradient; None
            where that is zero.
    """

    index: int
    program: Program
    constants: dict[str, str]
    sums: tuple[int | None, ...]


class _Matching:
    """Compares values of a compiled program with values of another one."""

    def __init__(self, compiled: Program, other: Program) -> None:
        self.programs = compiled, other
        self.made = [
            {i.target: i for i in (*program.forward, *program.adjoint)} for program in self.programs
        ]
        self.equal: dict[str, str] = {}  # values of the compiled program

    def _is_constant(self, which: int, value: str) -> bool:
        return value[0] in "np" or value[0] == "t" and value not in self.made[which]

    def values(self, ours: str | None, theirs: str | None) -> bool:
        """Whether two values are one; what was found equal on the way is kept only if so."""
        if ours is None or theirs is None:
            return ours is theirs
        if ours in self.equal:
            return self.equal[ours] == theirs
        constants = self._is_constant(0, ours), self._is_constant(1, theirs)
        if any(constants):
            # A number has one value for all neurons; any constant may take a parameter's place.
            same = all(constants) and (ours[0] != "n" or theirs[0] == "n")
        elif ours[0] == theirs[0] == "t":
            same = self._instructions(self.made[0][ours], self.made[1][theirs])
        else:
            same = ours == theirs
        if same:
            self.equal[ours] = theirs
        return same

    def _instructions(self, ours: Instruction, theirs: Instruction) -> bool:
        if ours.operation != theirs.operation:
            return False
        orders = [theirs.arguments]
        if ours.operation in COMMUTATIVE:
            orders.append(theirs.arguments[::-1])
        return any(self._all(ours.arguments, order) for order in orders)

    def _all(self, ours: Sequence[str | None], theirs: Sequence[str | None]) -> bool:
        before = dict(self.equal)
        if all(map(self.values, ours, theirs)):
            return True
        self.equal = before
        return False

    def match(self, index: int) -> Match | None:
        """The whole programs: results, gradients of inputs and states, and of each parameter."""
        compiled, other = self.programs
        counts = [(p.inputs, p.states, p.outputs) for p in self.programs]
        count = compiled.inputs + compiled.states
        if counts[0] != counts[1] or not self._all(
            (*compiled.results, *compiled.gradients[:count]),
            (*other.results, *other.gradients[:count]),
        ):
            return None
        terms = compiled.gradients[count:]
        sums: list[int | None] = []
        for gradient in other.gradients[count:]:
            free = [k for k, term in enumerate(terms) if term and k not in sums]
            found = next((k for k in free if self.values(terms[k], gradient)), None)
            if found is None and gradient is not None:
                return None
            sums.append(found)
        constants = {a: b for a, b in self.equal.items() if self._is_constant(0, a)}
        return Match(index, compiled, constants, tuple(sums))


@lru_cache(maxsize=256)
def find(text: str, compiled: tuple[str, ...]) -> Match | None:
    """The compiled program, among these texts, with the fewest sums that stands for this one."""
    found = [_Matching(parse(c), parse(text)).match(k) for k, c in enumerate(compiled)]
    matches = [match for match in found if match is not None]
    return min(matches, key=lambda match: match.program.parameters, default=None)
