"""The kernels that can run here: backend, device and, on the CPU, instruction set.

Without a CUDA device Triton runs in its interpreter, on CPU tensors. The variable that asks for
that must be there before triton is imported, hence at the top; a test that compiles Triton kernels
ahead of time does so in a process of its own, with the variable unset.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from snnkernels.backends import BACKENDS, why_unavailable


class Target(NamedTuple):
    """One thing that must equal the reference."""

    backend: str
    device: str = "cpu"
    isa: str | None = None

    def __str__(self) -> str:
        return "-".join(part for part in self if part)

    @property
    def interpreted(self) -> bool:
        """Triton's interpreter: thousands of times slower, for small inputs only."""
        return self.backend == "triton" and self.device == "cpu"

    @property
    def specialises(self) -> bool:
        """Triton: each combination of options is a kernel that takes seconds to compile."""
        return self.backend == "triton"

    def some(self, cases: Iterable, turn: int) -> list:
        """The cases to run: all of them, but of Triton's one, by turns."""
        cases = [*cases]
        return [cases[turn % len(cases)]] if self.specialises else cases

    def param(self, *values, id: str = "") -> object:
        """A pytest parameter that ends with this target, marked where it needs a GPU."""
        marks = [pytest.mark.gpu] if self.device == "cuda" else []
        return pytest.param(*values, self, id=f"{id}-{self}" if id else str(self), marks=marks)

    @contextmanager
    def chosen(self):
        """Within it, backend "cpp" uses this instruction set."""
        if self.isa is None:
            yield
            return
        from snnkernels import _core

        assert _core.use_isa(self.isa)
        try:
            yield
        finally:
            _core.use_isa(None)


def _targets() -> list[Target]:
    found = []
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            continue
        for backend in BACKENDS:
            if backend == "torch" or why_unavailable(backend, device):
                continue
            if backend == "cpp" and device == "cpu":
                from snnkernels import _core

                found += [Target(backend, device, isa) for isa in _core.available_isas().split()]
            else:
                found.append(Target(backend, device))
    return found


TARGETS = _targets()
# Every backend on every device once, "torch" too: for what does not depend on instruction sets.
PLACES = [
    *(Target("torch", device) for device in dict.fromkeys(("cpu", *(t.device for t in TARGETS)))),
    *dict.fromkeys(target._replace(isa=None) for target in TARGETS),
]
