"""Numbers as parameters of a step: one program for all values, with the bits of the loop."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from snnkernels import fuse, spike
from snnkernels.core.trace import trace
from snnkernels.nn.neurons import STEPS
from tests.tools.steps import loop, same

ARITHMETIC = {
    "a - b": lambda a, b: a - b,
    "1 - a": lambda a, b: 1 - a,
    "a + b": lambda a, b: a + b,
    "a * b - 1": lambda a, b: a * b - 1,
    "1 / a": lambda a, b: 1 / a,
    "a // b": lambda a, b: a // b,
    "a % b": lambda a, b: a % b,
    "a ** b": lambda a, b: a**b,
    "2 ** -a": lambda a, b: 2**-a,
    "abs(-a)": lambda a, b: abs(-a) + +b,
}
LOOKED_AT = {
    "branch": lambda x, a: x * a if a > 1 else x - a,
    "truth": lambda x, a: x * a if a else x,
    "exp": lambda x, a: x * math.exp(-1 / a),
    "pow": lambda x, a: x.abs() ** a,
    "base": lambda x, a: a**x,
    "alpha": lambda x, a: torch.add(x, x, alpha=a / a),
    "clamp": lambda x, a: torch.nn.functional.hardtanh(x, -a, a),
    "range": lambda x, a: sum(x * k for k in range(int(a) + 2)),
    "method": lambda x, a: x * a.as_integer_ratio()[1],
    "text": lambda x, a: x * len(f"{a}"),
}
OPEN = {
    "product": lambda x, a: a * x + x * (1 - a),
    "quotient": lambda x, a: x / a + a / (2 + x.abs()),
    "difference": lambda x, a: (a - x) - (x - a),
    "where": lambda x, a: torch.where(x > a, a, x),
    "clamp": lambda x, a: x.clamp(-a, a),
    "full": lambda x, a: x + torch.full_like(x, a),
    "fill": lambda x, a: x.masked_fill(x > 0, a),
    "spike": lambda x, a: spike(x - a) * (a if isinstance(a, float) else 0),
    "in place": lambda x, a: (x + 1).mul_(a).sub_(a),
}


@pytest.fixture
def traces(monkeypatch):
    """Of which programs were traced."""
    calls = []
    module = sys.modules["snnkernels.ops.fuse"]
    monkeypatch.setattr(module, "trace", lambda *a: calls.append(a) or trace(*a))
    return calls


def _check(step, backend="auto", **numbers):
    x = torch.randn(7, 2, 9, requires_grad=True)
    y, state = fuse(step)(x, backend=backend, **numbers)
    y2, v2 = loop(step, x, [0.0], **numbers)
    assert same(y, y2) and same(state.v, v2)
    (dx,) = torch.autograd.grad(y.sum() + state.v.sum(), x)
    (dx2,) = torch.autograd.grad(y2.sum() + v2.sum(), x)
    assert torch.allclose(dx, dx2, rtol=1e-6, atol=1e-6)


def test_arithmetic_is_done_in_double(traces):
    def step(x, v, *, a, b, name):
        number = ARITHMETIC[name](a, b)
        v = v * 0.5 + number * x
        return v - number, v

    values = (0.9, 0.3), (1 / 3, 0.7), (2, 3), (7.0, 2), (0.1, 1e-3)
    for name in ARITHMETIC:
        for a, b in values:
            _check(step, a=a, b=b, name=name)
    kinds = {(type(a), type(b)) for a, b in values}
    assert len(traces) == len(ARITHMETIC) * len(kinds)


@pytest.mark.parametrize("name", OPEN)
def test_a_new_value_does_not_trace_again(name, traces):
    def step(x, v, *, a):
        v = OPEN[name](x, a) + v
        return v, v

    for a in (0.25, 0.9, 1.0, 2.0, 0.1):
        _check(step, a=a)
    assert len(traces) == 1


@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_value_that_is_looked_at_is_part_of_the_program(name, traces):
    def step(x, v, *, a, b):
        v = LOOKED_AT[name](x, a) + b * v
        return v, v

    for a in (0.25, 1.5, 2.0):
        for b in (0.5, 0.75, 0.8):
            _check(step, a=a, b=b, backend="torch")
    assert len(traces) == 1 + 3  # b stays open


def test_where_only_a_float_will_do_every_number_is_part_of_the_program(traces):
    def step(x, v, *, a, b):
        v = x * torch.tensor(a) + b * v
        return v, v

    for b in (0.5, 0.5, 0.75):
        _check(step, a=0.9, b=b)
    assert len(traces) == 1 + 2


def test_values_that_have_no_number_are_errors():
    def step(x, v, *, a):
        return x * (a - a), v / (1 / a)

    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="NaN"):
        fuse(step)(x, a=math.inf)
    with pytest.raises(ZeroDivisionError):
        fuse(step)(x, a=0.0)


@pytest.mark.parametrize("name", STEPS)
def test_open_numbers_give_the_program_of_their_values(name):
    """Nothing that PyTorch makes of a number by itself is taken for one that never changes."""
    neuron = fuse(STEPS[name])
    kinds = {k: type(v) for k, v in neuron.parameters.items() if type(v) in (int, float)}
    values = {k: neuron.parameters[k] for k in kinds}
    others = {k: v for k, v in neuron.parameters.items() if k not in kinds}
    count = len(neuron.state_names)
    found = trace(STEPS[name], 1, count, 1, (), others, kinds).with_values(values)
    fixed = trace(STEPS[name], 1, count, 1, (), others | values)

    def lines(traced):
        slots = {f"n{k}": repr(number) for k, number in enumerate(traced.numbers)}
        body = traced.program.splitlines()[1:]
        return [" ".join(slots.get(word, word) for word in line.split()) for line in body]

    assert lines(found) == lines(fixed)
