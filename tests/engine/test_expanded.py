"""Arguments and arriving gradients of stride 0 in any dimensions, on every path."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.tools.compare import assert_same

SHAPE = (18, 2, 3, 2, 2)
DIMS = [dims for n in (1, 2, 3) for dims in itertools.combinations(range(3), n)]
DIMS += [(4,), (0, 1, 2, 3, 4)]
EXACT = ("s", "h", "f", "v", "refractory", "synapse", "trace", "state")
EXACT += ("dx", "dv", "dsynapse", "dtrace")


def expanded(tensor, dims):
    """Its first values along some of the dimensions of a sequence, for all of them."""
    if tensor.shape[-2:] != SHAPE[-2:]:
        return tensor
    for dim in dims:
        dim += tensor.ndim - len(SHAPE)  # a step has no T
        if dim >= 0 and (dim or tensor.shape[0] in SHAPE[:2]):  # the lags of a filter's state stay
            tensor = tensor.narrow(dim, 0, 1).expand_as(tensor)
    return tensor


def run(op, backend, arguments, gradients):
    leaves = {k: t.detach().requires_grad_(k in op.learned) for k, t in arguments.items()}
    outputs = op.run(backend=backend, **leaves)
    pairs = [(out, gradients[k]) for k, out in outputs.items() if out.requires_grad]
    outs, arriving = zip(*pairs, strict=True)
    found = torch.autograd.grad(outs, [leaves[k] for k in op.learned], arriving)
    outputs = {k: out.detach() for k, out in outputs.items()}
    return outputs | {f"d{k}": g for k, g in zip(op.learned, found, strict=True)}


@pytest.mark.parametrize("which", ("arguments", "gradients"))
def test_an_expanded_tensor_is_as_good_as_its_copy(op, place, which):
    if place.backend == "torch":
        return  # PyTorch's own operations, with which this is no question
    arguments = {k: t.to(place.device) for k, t in op.arguments(SHAPE).items()}
    outputs = op.run(backend=place.backend, **arguments)
    arriving = {k: torch.randn_like(out) for k, out in outputs.items()}
    for dims in place.some(DIMS, len(op.names)):
        given = {"arguments": arguments, "gradients": arriving}
        given[which] = {k: expanded(t, dims) for k, t in given[which].items()}
        copies = {kind: {k: t.contiguous() for k, t in d.items()} for kind, d in given.items()}
        got, want = (run(op, place.backend, **d) for d in (given, copies))
        for name, expected in want.items():
            if name in EXACT and "out" not in want:  # BNTT adds up samples
                assert_same(got[name], expected, f"{name} {dims}", strides=False)
            else:  # summed up in the memory order of x
                torch.testing.assert_close(got[name], expected, rtol=1e-4, atol=1e-3)
