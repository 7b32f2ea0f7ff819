"""The reference itself: against plain autograd, numerical derivatives and examples by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from snnkernels import ATan, FastSigmoid, Gaussian, Rectangle, Sigmoid, State, Triangle, lif
from snnkernels.core.reference import lif as reference
from tests.tools import naive
from tests.tools.cases import GENERAL_OPTIONS, NEURONS, SURROGATES, Neuron, Shape, make_inputs
from tests.tools.compare import assert_same, run

DOUBLE = torch.float64
SMOOTH = (
    Triangle(0.8, 3.0),
    Rectangle(0.3, 4.0),
    Gaussian(0.9),
    ATan(),
    Sigmoid(),
    FastSigmoid(2.0),
)


def test_every_surrogate_is_in_the_tables():
    from snnkernels.core.surrogates import SURROGATES as KINDS

    assert {type(s) for s in SURROGATES} == {type(s) for s in SMOOTH} == set(KINDS)
    assert [kind.code for kind in KINDS] == list(range(len(KINDS)))


@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_equals_plain_autograd(neuron):
    inputs = make_inputs(Shape((20, 3, 4, 2)), neuron)
    x = inputs.x.double().requires_grad_()
    v, wait = naive.start(inputs)
    v.requires_grad_()
    decay, theta = (naive.spread(c, x).requires_grad_() for c in inputs[2:4])
    want = naive.loop(x, v, wait, decay, theta, neuron)
    gradients = [g.double() for g in (inputs.ds, inputs.dv, inputs.dh)]
    used = 3 if neuron.record else 2
    want_gradients = torch.autograd.grad(
        [want[0], want[1], want[3]][:used], (x, v, decay, theta), gradients[:used]
    )

    coefficients = [
        c.double().requires_grad_() if isinstance(c, torch.Tensor) else float(torch.tensor(c))
        for c in inputs[2:4]
    ]
    s, state, *h = lif(
        x,
        State(v, wait if neuron.refractory else None),
        decay=coefficients[0],
        v_threshold=coefficients[1],
        backend="torch",
        **neuron.options(),
    )
    assert_same(s.detach(), want[0].detach(), "s")
    assert_same(state.v.detach(), want[1].detach(), "v")
    if neuron.refractory:
        assert_same(state.refractory, want[2], "refractory")
    if neuron.record:
        assert_same(h[0].detach(), want[3].detach(), "h")
    leaves = [x, v, *(c for c in coefficients if isinstance(c, torch.Tensor))]
    got = torch.autograd.grad([s, state.v, *h], leaves, gradients[:used])
    torch.testing.assert_close(got[:2], want_gradients[:2], rtol=1e-12, atol=1e-12)
    for gradient, terms in zip(got[2:], want_gradients[2:], strict=False):
        dims = [d for d in range(terms.ndim) if not (gradient.ndim and d == 2)]
        torch.testing.assert_close(gradient, terms.sum(dims), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("surrogate", SMOOTH, ids=repr)
def test_derivative_is_that_of_the_primitive(surrogate):
    u = torch.linspace(-2.03, 2.01, 401, dtype=DOUBLE)
    corners = torch.tensor([0.0, getattr(surrogate, "width", 0.0)], dtype=DOUBLE)
    u = u[((u.abs()[:, None] - corners) * 1e4).abs().amin(1) > 1]
    step = 1e-6
    slope = (surrogate.primitive(u + step) - surrogate.primitive(u - step)) / (2 * step)
    torch.testing.assert_close(surrogate.derivative(u), slope, rtol=1e-7, atol=1e-8)
    far = surrogate.primitive(torch.tensor([-1e9], dtype=DOUBLE))
    torch.testing.assert_close(far, torch.zeros(1, dtype=DOUBLE), rtol=0, atol=1e-8)


@pytest.mark.parametrize("reset", ("hard", "soft", "none"))
@pytest.mark.parametrize("surrogate", SMOOTH, ids=lambda s: type(s).__name__)
def test_gradcheck_of_the_smooth_twin(surrogate, reset):
    def call(x, v, decay, theta):
        s, state, h, _ = reference(
            x,
            State(v),
            decay=decay,
            v_threshold=theta,
            v_reset=-0.3,
            reset=reset,
            detach_reset=False,
            refractory=0,
            surrogate=surrogate,
            record="h",
            smooth=True,
        )
        return s, state.v, h

    x = torch.randn(4, 2, 3, dtype=DOUBLE, requires_grad=True)
    v = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    decay = torch.tensor(0.8, dtype=DOUBLE, requires_grad=True)
    theta = (1 + torch.rand(3, dtype=DOUBLE)).requires_grad_()
    assert torch.autograd.gradcheck(call, (x, v, decay, theta))


# x, options, then s, h and the last v that follow by hand.
EXAMPLES = {
    "hard": (
        [0.5, 0.75, 0.5, 1.0],
        {"v_reset": -0.5},
        [0, 1, 0, 1],
        [0.5, 1.0, 0.25, 1.125],
        -0.5,
    ),
    "soft": ([0.5, 0.75, 1.5, 0.0], {"reset": "soft"}, [0, 1, 1, 0], [0.5, 1.0, 1.5, 0.25], 0.25),
    "none": ([1.0, 0.5, 0.25], {"reset": "none"}, [1, 1, 0], [1.0, 1.0, 0.75], 0.75),
    "refractory": (
        [1.0, 2.0, 3.0, 4.0, 0.5],
        {"refractory": 2},
        [1, 0, 0, 1, 0],
        [1.0, 2.0, 4.0, 6.0, 0.5],
        0.5,
    ),
    "refractory_soft": (
        [2.0, 2.0, 0.0],
        {"refractory": 1, "reset": "soft"},
        [1, 0, 1],
        [2.0, 2.5, 1.25],
        0.25,
    ),
}


@pytest.mark.parametrize("backend", ("torch", "auto"))
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_by_hand(name, backend):
    x, options, s, h, v = EXAMPLES[name]
    x = torch.tensor(x).view(-1, 1)
    got_s, state, got_h = lif(x, decay=0.5, record="h", backend=backend, **options)
    assert got_s.flatten().tolist() == s
    assert got_h.flatten().tolist() == h
    assert state.v.item() == v


def test_gradient_by_hand():
    # h = (0.5, 1.25); ds/dh = 1 - |h - 1|; hard reset to 0, so dv/dh = 1 - s + (0 - h) ds/dh.
    x = torch.tensor([[0.5], [1.0]], requires_grad=True)
    decay = torch.tensor(0.5, requires_grad=True)
    s, state = lif(x, decay=decay, backend="torch")
    s.sum().backward()
    f0, f1 = 0.5, 0.75
    through = 1 - 0 + (0 - 0.5) * f0
    assert x.grad.flatten().tolist() == [f0 + f1 * 0.5 * through, f1]
    assert decay.grad.item() == f1 * 0.5
    assert state.v.item() == 0


def test_state_counts_down_the_refractory_steps():
    x = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    _, state = lif(x, refractory=3, backend="torch")
    assert state.refractory.tolist() == [2.0, 0.0]


def test_soft_reset_conserves_charge():
    # Without leak, what came in is what left as spikes or is still there; exact on a grid.
    inputs = make_inputs(Shape((30, 4, 5)), Neuron(reset="soft"), values="grid")
    s, state = lif(inputs.x, reset="soft", decay=1.0, backend="torch")
    assert torch.equal(inputs.x.sum(0), s.sum(0) + state.v)


def test_cases_cover_every_option():
    fields = {f.name for f in dataclasses.fields(Neuron)}
    for name in fields - {"surrogate"}:
        assert len({getattr(n, name) for n in NEURONS.values()}) > 1, name
    assert {n.surrogate for n in NEURONS.values()} == set(SURROGATES)
    taken = set(Neuron().options()) | {"decay", "v_threshold", "state", "x", "backend"}
    assert taken | GENERAL_OPTIONS == set(lif.__annotations__) - {"return"}
    assert run(make_inputs(Shape((2, 3)), Neuron()), Neuron(), "torch").dx.shape == (2, 3)
