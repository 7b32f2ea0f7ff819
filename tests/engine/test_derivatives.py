"""Derivatives of all kinds: each is right, or an error says that there is none."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from tests.tools.calls import OPS, total
from tests.tools.compare import assert_same

SHAPE = (5, 2, 3, 2, 2)
NO_SECOND = "cannot be differentiated twice"
NO_FORWARD_MODE = "jvp function"  # PyTorch's sentence: there is none


@pytest.fixture(params=OPS)
def call(request, place):
    """An op as a function of one of its arguments, for each of them: (name, function, value)."""
    op = OPS[request.param]
    arguments = {name: t.to(place.device) for name, t in op.arguments(SHAPE).items()}

    def function(name):
        return lambda value: op.run(backend=place.backend, **{**arguments, name: value})

    def cases():
        return [(name, function(name), arguments[name]) for name in op.learned]

    cases.is_autograd = request.param == "iir" and place.backend == "torch"
    cases.is_linear = request.param == "iir"
    cases.some = lambda turn: place.some(cases(), turn)
    return cases


@pytest.mark.parametrize("power", (1, 2))
def test_a_gradient_of_a_gradient(call, power):
    """`iir` on backend "torch" has one; all else says that it has none, whatever arrives."""
    for name, function, value in call():
        leaf = value.clone().requires_grad_()
        loss = total(function(leaf * 1.0), power)
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        if call.is_autograd or (power == 1 and call.is_linear):
            continue
        assert first.requires_grad, f"d{name} is a constant, and a penalty on it without effect"
        with pytest.raises(RuntimeError, match=NO_SECOND):
            (first.square().sum() + 0 * loss).backward()


def test_forward_mode(call):
    def by_function(function, value, tangent):
        return torch.func.jvp(function, (value,), (tangent,))[1]

    def by_dual_numbers(function, value, tangent):
        with forward_ad.dual_level():
            outputs = function(forward_ad.make_dual(value, tangent))
            return {k: forward_ad.unpack_dual(out).tangent for k, out in outputs.items()}

    for _, function, value in call():
        tangent = torch.ones_like(value)
        for way in (by_function, by_dual_numbers):
            if call.is_autograd:
                leaf = value.clone().requires_grad_()
                (along,) = torch.autograd.grad(total(function(leaf), 1), leaf)
                got = total(way(function, value, tangent), 1)
                torch.testing.assert_close(got, (along * tangent).sum(), rtol=1e-4, atol=1e-4)
                continue
            with pytest.raises(NotImplementedError, match=NO_FORWARD_MODE):
                way(function, value, tangent)


def close(got, want, what):
    """Not bit for bit: BNTT works its gradients out from x where it must not look at values."""
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, msg=lambda text: f"{what}: {text}")


def gradient(function, value):
    leaf = value.detach().clone().requires_grad_()
    return torch.autograd.grad(total(function(leaf)), leaf)[0]


def test_torch_func(call):
    """grad, and with vmap gradients for several values at once and several losses of one call."""
    for name, function, value in call.some(1):

        def loss(value, function=function):
            return total(function(value))

        want = gradient(function, value)
        close(torch.func.grad(loss)(value), want, name)
        other = value * 0.5
        both = torch.stack([value, other])
        got = torch.vmap(torch.func.grad(loss))(both)
        close(got, torch.stack([want, gradient(function, other)]), f"{name}, vmap")
        outputs = torch.vmap(function)(both)
        for k, out in function(other).items():
            assert_same(outputs[k][1], out, f"{k} of {name}, vmap", strides=False)
        rows = torch.func.jacrev(lambda v: loss(v) * torch.tensor([1.0, 2.0]))(value)
        close(rows, torch.stack([want, 2 * want]), f"{name}, jacrev")
