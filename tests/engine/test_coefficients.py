"""Coefficients in every form whose meaning is clear, for every one of them."""

from __future__ import annotations

import numpy
import pytest
import torch

from snnkernels import lif
from tests.tools.calls import OPS
from tests.tools.compare import assert_same

SHAPE = (4, 2, 3, 2, 2)
NAMES = ("decay", "v_threshold", "gain", "trace_decay")
ONE = {
    "[1]": torch.tensor([0.5]),
    "[1, 1, 1]": torch.full((1, 1, 1), 0.5),
    "float64": torch.tensor(0.5, dtype=torch.float64),
    "bfloat16": torch.tensor(0.5, dtype=torch.bfloat16),
    "numpy number": numpy.float32(0.5),
    "numpy float64": numpy.float64(0.5),
    "numpy array": numpy.full((), 0.5),
    "[C, 1, 1]": torch.full((3, 1, 1), 0.5),
    "[1, C, 1, 1]": torch.full((1, 3, 1, 1), 0.5),
    "expanded": torch.tensor(0.5).expand(3),
    "list": [0.5, 0.5, 0.5],
}
WHOLE = {
    "int": 1,
    "numpy integer": numpy.int64(1),
    "integer tensor": torch.tensor(1),
    "integers": torch.ones(3, dtype=torch.int32),
}
FORMS = {**{k: (v, 0.5) for k, v in ONE.items()}, **{k: (v, 1.0) for k, v in WHOLE.items()}}


@pytest.mark.parametrize("form", FORMS)
def test_the_neuron(form, place):
    op = OPS["lif general"]
    arguments = {name: t.to(place.device) for name, t in op.arguments(SHAPE).items()}
    value, number = FORMS[form]
    value = value.to(place.device) if isinstance(value, torch.Tensor) else value
    for name in place.some(NAMES, len(form)):
        got = op.run(backend=place.backend, **{**arguments, name: value})
        want = op.run(backend=place.backend, **{**arguments, name: torch.full((3,), number)})
        for k, out in want.items():
            assert_same(got[k], out, f"{k}, {name}")


@pytest.mark.parametrize("form", ((3,), (1,), (3, 1, 1), (1, 3, 1, 1)), ids=str)
def test_the_gradient_has_the_shape_that_was_given(form, place):
    op = OPS["lif general"]
    arguments = {name: t.to(place.device) for name, t in op.arguments(SHAPE).items()}
    for name in place.some(NAMES, len(form)):
        leaf = torch.full(form, 0.5, device=place.device, requires_grad=True)
        s = op.run(backend=place.backend, **{**arguments, name: leaf})["s"]
        assert torch.autograd.grad(s.sum(), leaf)[0].shape == form


@pytest.mark.parametrize("values", ([1, 0], numpy.ones(2), torch.ones(2, dtype=torch.int64)))
def test_the_filter(values, place):
    for name in ("iir", "lif general"):
        op = OPS[name]
        arguments = {k: t.to(place.device) for k, t in op.arguments(SHAPE).items()}
        for lag in place.some(("alpha", "beta"), 0):
            plain = torch.as_tensor(values, dtype=torch.float32, device=place.device)
            got = op.run(backend=place.backend, **{**arguments, lag: values})
            want = op.run(backend=place.backend, **{**arguments, lag: plain})
            for k, out in want.items():
                assert_same(got[k], out, f"{k}, {lag}")


@pytest.mark.parametrize("number", (numpy.float32(0.25), torch.tensor(0.25), torch.tensor([0.25])))
def test_numbers(number, place):
    x = torch.randn(6, 2, 3, device=place.device)
    got = lif(x, v_reset=number, regulariser=(number, number), backend=place.backend)
    want = lif(x, v_reset=0.25, regulariser=(0.25, 0.25), backend=place.backend)
    assert_same(got[0], want[0])
    assert_same(got[2], want[2])


@pytest.mark.parametrize("steps", (numpy.int64(2), torch.tensor(2)))
def test_steps(steps, place):
    x = torch.randn(6, 2, 3, device=place.device)
    got, want = (lif(x, refractory=n, backend=place.backend)[0] for n in (steps, 2))
    assert_same(got, want)
