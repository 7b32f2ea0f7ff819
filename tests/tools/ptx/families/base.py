"""What a family is, and how its calls are compared."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from tests.tools.compare import assert_few_ulp, assert_same
from tests.tools.ptx.families.inputs import STEPS

PARAMETER_ERROR = 2e-4  # of a parameter's gradient, beside its largest value
Case = dict  # options of one call by name, all of them text, numbers and tuples


class Family(ABC):
    """Random calls of one family of kernels.

    Attributes:
        name: by which it is asked for.
        backends: those that have it.
        may_fuse: its sums and products need not be rounded one by one.
        weight: how often it is drawn.
    """

    name: str
    backends: tuple[str, ...] = ("cuda", "triton")
    may_fuse = False
    weight = 1

    @abstractmethod
    def draw(self, rng: random.Random, backend: str) -> Case:
        """Options of a call."""

    @abstractmethod
    def check(self, case: Case, rng: random.Random, backend: str, ulps: int) -> list[str]:
        """Run a call on the backend and what it must equal; gives how they differ.

        Args:
            case: of `draw` or `again`.
            rng: draws the values.
            backend: that is simulated.
            ulps: how far approximate instructions may lie from the value rounded to nearest.
        """

    def again(self, case: Case, rng: random.Random) -> Case:
        """Other sizes and values, mostly of the same compiled kernels."""
        steps, *rest = case["shape"]
        if steps > 1:
            steps = rng.choice([k for k in STEPS if k > 1])
        if len(rest) == 1 and rest[0] > 1:
            rest = [max(1, rest[0] % 256 + 256 * rng.randrange(0, 3))]
        elif len(rest) > 1 and rest[0] > 1:
            rest[0] = rng.choice((2, 3, 4, 5))
        if steps * math.prod(rest) > 20_000:
            steps = 3
        return case | {"shape": (steps, *rest)}


def differences(
    got: dict, want: dict, *, exact: bool, values: str, perturbed: bool = False
) -> list[str]:
    """How the outputs and gradients of a call differ from those of the reference.

    Args:
        got: tensors by name; gradients begin with "d".
        want: the reference's. A gradient that is absent is zero.
        exact: gradients of x and states must have the reference's bits, and not be near only.
        values: kind of the inputs; where they are not all finite, gradients of parameters are not
            compared.
        perturbed: approximate instructions err. A step multiplies the error of all later ones by
            1 - f, which may cancel: gradients are then near as the largest of the call says.
    """
    finite = (t[t.isfinite()].abs() for name, t in want.items() if name[0] == "d" and t is not None)
    largest = max((t.max().item() for t in finite if t.numel()), default=0.0)
    found = []
    for name, expected in want.items():
        actual = got.get(name)
        if actual is None and expected is None:
            continue
        if actual is None or expected is None:
            if bool((expected if actual is None else actual).any()):
                found.append(f"{name} is {'missing' if actual is None else 'there'}")
            continue
        try:
            if name in PARAMETERS:
                if values != "special":
                    _assert_near(actual, expected)
            elif exact or not name.startswith("d"):
                assert_same(actual, expected, strides=False)
            elif values == "special":
                _assert_few_ulp_where_finite(actual, expected)
            elif perturbed:
                _assert_near(actual, expected, largest)
            else:
                assert_few_ulp(actual, expected)
        except AssertionError as error:
            found.append(f"{name}: {' '.join(str(error).split()).removeprefix(': ')}")
    return found


PARAMETERS = {
    "penalty", "ddecay", "dv_threshold", "dgain", "dtrace_decay", "dalpha", "dbeta",
}  # fmt: skip


def _assert_near(got: Tensor, want: Tensor, largest: float = 1.0) -> None:
    scale = max(largest, want.abs().max().item()) if want.numel() else largest
    rtol = PARAMETER_ERROR + torch.finfo(got.dtype).eps
    torch.testing.assert_close(got, want, rtol=rtol, atol=PARAMETER_ERROR * scale, equal_nan=True)


def _assert_few_ulp_where_finite(got: Tensor, want: Tensor) -> None:
    """Sums whose terms cancel: as far as the largest finite value says."""
    both = got.isfinite() & want.isfinite()
    scale = want[both].abs().max().item() if bool(both.any()) else 0.0
    torch.testing.assert_close(got[both], want[both], rtol=2e-2, atol=2e-2 * scale)
