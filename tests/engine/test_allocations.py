"""What the engine allocates: nothing by PyTorch's defaults, and nothing without a use."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from tests.tools.calls import allocations, total
from tests.tools.compare import assert_same


@contextmanager
def default(what: torch.dtype | str):
    """Within it, tensors have this dtype or device, unless something else is said."""
    if what == "meta":
        with torch.device("meta"):
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(what)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_no_default_matters(op, place):
    arguments = {name: t.to(place.device) for name, t in op.arguments().items()}
    want = op.results(arguments, place.backend)
    for what in place.some((torch.bfloat16, torch.float16, torch.float64, "meta"), 0):
        with default(what), allocations():
            got = op.results(arguments, place.backend)
        for name in want:
            assert_same(got[name], want[name], f"{name}, default {what}")


SEQUENCES, STATES = ("x",), ("v", "synapse", "trace")


@pytest.mark.parametrize("wanted", ("sequence", "state", "coefficients"))
def test_backward_makes_no_sequence_but_the_gradient(op, place, wanted):
    """None for its strides, nor in the place of a gradient that nobody asked for."""
    groups = {"sequence": SEQUENCES, "state": STATES}
    others = set(op.learned) - {*SEQUENCES, *STATES}
    names = others if wanted == "coefficients" else {*groups[wanted]} & {*op.learned}
    if place.backend == "torch" or not names or "weight" in names:
        return  # autograd makes what it likes; the kernels of BNTT always write dx
    arguments = {name: t.to(place.device) for name, t in op.arguments().items()}
    leaves = [arguments[name].requires_grad_() for name in names]
    loss = total(op.run(backend=place.backend, **arguments))
    with allocations() as made:
        torch.autograd.grad(loss, leaves)
    size = arguments["x"].numel()
    assert sum(out.numel() >= size for out in made) == (wanted == "sequence")
