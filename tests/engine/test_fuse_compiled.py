"""Programs that are compiled ahead of time stand for those that differ in their constants alone."""

from __future__ import annotations

import random

import pytest
import torch

from snnkernels import Laplace, Triangle, fuse, spike
from snnkernels.backends import available_backends
from snnkernels.backends.compiled_programs import find
from snnkernels.core.program import parse
from snnkernels.nn.neurons import STEPS, se_adlif
from tests.tools.programs import programs
from tests.tools.steps import near, same

TEXTS = tuple(programs().values())


def _program(step, **parameters):
    neuron = fuse(step)
    return neuron.equations({**neuron.parameters, **parameters})[0]


def _mixtures(name):
    numbers = [k for k, v in fuse(STEPS[name]).parameters.items() if type(v) is float]
    draw = random.Random(name)
    return [draw.sample(numbers, draw.randint(1, len(numbers))) for _ in range(3)]


@pytest.mark.parametrize("name", STEPS)
def test_any_parameters_may_be_tensors(name):
    for mixture in _mixtures(name):
        text = _program(STEPS[name], **{k: torch.ones(4) for k in mixture})
        match = find(text, TEXTS)
        assert match is not None, mixture
        used = {a for i in (*match.program.forward, *match.program.adjoint) for a in i.arguments}
        assert all(value in used for value in match.constants)


@pytest.mark.skipif("cpp" not in available_backends(), reason="the C++ core is not built")
@pytest.mark.parametrize("name", STEPS)
def test_mixtures_are_the_reference(name):
    neuron = fuse(STEPS[name])
    x = torch.randn(19, 2, 4, 3) * {"brf": 60.0, "adlif": 8.0, "se_adlif": 8.0}.get(name, 1.5)
    for mixture in _mixtures(name):
        found = []
        for backend in ("torch", "cpp"):
            given = x.clone().requires_grad_()
            values = {
                k: torch.linspace(0.98, 1.02, 4).mul(neuron.parameters[k]).requires_grad_()
                for k in mixture
            }
            s, state = neuron(given, backend=backend, **values)
            leaves = [given, *values.values()]
            total = s.square().sum() + sum((v * v).sum() for v in state)
            gradients = torch.autograd.grad(
                total, leaves, allow_unused=True, materialize_grads=True
            )
            found.append(((s, *state), gradients))
        (out, grads), (out2, grads2) = found
        exact = name not in ("eif", "qif", "izhikevich", "adlif", "se_adlif")
        assert all((near if name == "eif" else same)(b, a) for a, b in zip(out, out2, strict=True))
        assert (same if exact else near)(grads2[0], grads[0])
        assert all(near(b, a, 3e-5) for a, b in zip(grads, grads2, strict=True))


def test_other_operations_are_other_programs():
    def greater(x, u, w, *, alpha=0.9, beta=0.95, a=0.5, b=1.0, strict=False):
        u = alpha * u + (1 - alpha) * (x - w)
        s = spike(u - 1.0, Laplace(0.4, 0.2), strict)
        u = u * (1 - s.detach())
        return s, u, beta * w + (1 - beta) * (a * u + b * s)

    assert find(_program(greater, strict=True), TEXTS) is not None  # se_adlif with a constant
    assert find(_program(greater), TEXTS) is None
    assert find(_program(se_adlif, surrogate=Triangle()), TEXTS) is None


def test_what_is_one_number_for_all_neurons_does_not_become_a_tensor():
    def step(x, v, *, theta, zero):
        h = 0.5 * v + x
        fired = h - theta >= zero
        return fired.to(h.dtype), torch.where(fired, 0.0, h)

    with_numbers = _program(step, theta=1.0, zero=0.0)
    assert find(with_numbers, (with_numbers,)) is not None
    assert find(_program(step, theta=torch.ones(3), zero=0.0), (with_numbers,)) is None
    assert find(with_numbers, (_program(step, theta=torch.ones(3), zero=0.0),)) is not None


def test_arguments_may_be_in_either_order_and_constants_shared():
    one = _program(lambda x, v, *, a, b: (a * v + x * b, x), a=torch.ones(3), b=torch.ones(3))
    other = _program(lambda x, v, *, a: (v * a + a * x, x), a=0.5)
    match = find(other, (one,))
    assert match.constants == {"p0": "n0", "p1": "n0"} and match.sums == ()
    assert find(one, (other,)) is None  # two values do not fit one
    swapped = _program(lambda x, v, *, a, b: (a * v - x * b, x), a=torch.ones(3), b=torch.ones(3))
    assert find(other, (swapped,)) is None
    assert parse(one).parameters == 2
