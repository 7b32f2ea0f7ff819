"""What `fuse` refuses, and with which words."""

from __future__ import annotations

import pytest
import torch

from snnkernels import fuse, spike
from tests.tools.steps import BACKENDS, leaky


def _branch(x, v):
    return (x, v) if x.sum() > 0 else (v, x)


def _item(x, v):
    return x * v.max().item(), v


def _mean(x, v):
    return x - x.mean(), v


def _matrix(x, v):
    return x, x.view(-1, 1) @ v.view(1, -1)


def _random(x, v):
    return x, v + torch.rand_like(x)


def _unknown(x, v):
    return torch.erfinv(x), v


def _rounds_once(x, v):
    return torch.addcmul(x, x, v), v


def _rounds_down(x, v):
    return torch.div(x, v + 1, rounding_mode="floor"), v


def _in_place(x, v):
    v += x
    return v, v


def _too_few(x, v):
    return x


def _number(x, v):
    return x, 1.0


def _integer(x, v):
    return (x > 0).to(torch.int64), v


def _spike_of_integer(x, v):
    return spike(x > 0), v


def _shape(x, v):
    return x.view(-1, 1) + v.view(1, -1), v


_weight = torch.rand(3)
_learned = torch.tensor(0.5, requires_grad=True)


def _captured(x, v):
    return x * _weight, v


def _captured_learned(x, v):
    return x * _learned, v


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (_branch, ("sum", "test_fuse_errors.py:", "elementwise")),
        (_item, ("max", "test_fuse_errors.py:")),
        (_mean, ("mean", "x - x.mean()", "elementwise")),
        (_matrix, ("mm", "test_fuse_errors.py:", "product with a matrix")),
        (_random, ("rand_like", "random numbers")),
        (_unknown, ("erfinv", "test_fuse_errors.py:")),
        (_rounds_once, ("addcmul", "rounds in its own way")),
        (_rounds_down, ("div", "rounds down", "(a / b).floor()")),
        (_in_place, ("in place",)),
        (_too_few, ("must return 1 output(s) and then 1 state(s)", "returned 1")),
        (_number, ("must return tensors", "float")),
        (_integer, ("int64", "float32")),
        (_spike_of_integer, ("u must be a floating-point tensor", "bool")),
        (_shape, ("one value per neuron",)),
        (_captured, ("captured tensor of shape [3]", "pass it as a parameter")),
        (_captured_learned, ("requires a gradient", "pass it as a parameter")),
    ],
)
def test_what_is_no_step_is_an_error(step, words):
    with pytest.raises((ValueError, TypeError)) as error:
        fuse(step)(torch.randn(3, 4), backend=BACKENDS[-1])
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda n, x: n(x.long(), decay=0.5), TypeError, "float32"),
        (lambda n, x: n(x[0, 0], decay=0.5), ValueError, "at least two dimensions"),
        (lambda n, x: n((x, x), decay=0.5), TypeError, "1 tensor"),
        (lambda n, x: n(x), TypeError, "needs a value for decay"),
        (lambda n, x: n(x, decay=0.5, tau=1.0), TypeError, "no parameter ['tau']"),
        (lambda n, x: n(x, decay=torch.rand(7)), ValueError, "got shape [7]"),
        (lambda n, x: n(x, decay=torch.ones(4, dtype=torch.int64)), TypeError, "int64"),
        (lambda n, x: n(x, decay=float("nan")), ValueError, "NaN"),
        (lambda n, x: n(x, decay=[0.5]), TypeError, "must be a number, a tensor or an option"),
        (lambda n, x: n(x, (0.0, 0.0), decay=0.5), ValueError, "got 2 of them"),
        (lambda n, x: n(x, torch.zeros(2), decay=0.5), ValueError, "[3, 4]"),
        (lambda n, x: n(x, torch.zeros(3, 4, dtype=torch.int64), decay=0.5), TypeError, "int64"),
        (lambda n, x: n(x, "zero", decay=0.5), ValueError, "'zero'"),
        (lambda n, x: n(x, decay=0.5, backend="fast"), ValueError, "fast"),
        (lambda n, x: n(x.double(), decay=0.5, backend="cpp"), TypeError, "float64"),
    ],
)
def test_bad_arguments_of_a_call(call, error, words):
    with pytest.raises(error) as raised:
        call(fuse(leaky), torch.randn(2, 3, 4))
    assert words in str(raised.value)


def test_bad_arguments_of_fuse():
    with pytest.raises(TypeError, match="must be a function"):
        fuse(3)
    with pytest.raises(ValueError, match="inputs must be"):
        fuse(leaky, inputs=0)
    with pytest.raises(ValueError, match="outputs must be"):
        fuse(leaky, outputs=("bfloat16",))
    with pytest.raises(ValueError, match="at least one state"):
        fuse(leaky, inputs=2)
    with pytest.raises(TypeError, match="must name its arguments"):
        fuse(lambda *states: states)


@pytest.mark.skipif("cpp" not in BACKENDS, reason="the C++ core is not built")
def test_a_step_that_is_too_large_for_the_kernels_is_an_error():
    def outputs(x, v):
        return *[x * k for k in range(2, 11)], v

    x = torch.randn(2, 3)
    with pytest.raises(RuntimeError, match="too large for backend 'cpp': 9 inputs or outputs"):
        fuse(outputs, outputs=9)(x, backend="cpp")
    assert fuse(outputs, outputs=9)(x, backend="torch")[8].equal(x * 10)
