"""`fuse`: a traced step gives the bits of the loop in PyTorch, and of `lif` where it is one."""

from __future__ import annotations

import math
import types

import pytest
import torch

import snnkernels
from snnkernels import fuse, lif, spike
from snnkernels.core.lower import LOWER
from snnkernels.core.program import OPERATIONS, parse
from snnkernels.core.state import State
from snnkernels.core.trace import trace
from snnkernels.nn.neurons import STEPS
from tests.tools.cases import SHAPES, SURROGATES
from tests.tools.steps import leaky, leaves, lif_step, loop, near, same

# --- LIF as a step

LIFS = {
    "hard": {},
    "hard detached": {"detach": True},
    "soft": {"reset": "soft"},
    "soft detached": {"reset": "soft", "detach": True},
    "none": {"reset": "none"},
    "trace": {"reset": "trace"},
    "trace detached": {"reset": "trace", "detach": True},
    "refractory": {"refractory": 2},
    "soft refractory": {"reset": "soft", "refractory": 3},
    "gain": {"gain": True},
    **{type(s).__name__: {"surrogate": s} for s in SURROGATES},
    "height": {"surrogate": snnkernels.FastSigmoid(2.0, height=0.3)},
    **{f"synapse {P} {Q}": {"orders": (P, Q)} for P in range(3) for Q in range(3)},
    "all": {"reset": "trace", "refractory": 2, "gain": True, "orders": (1, 1)},
}


@pytest.mark.parametrize("name", LIFS)
@pytest.mark.parametrize("per_channel", (False, True))
def test_lif_written_as_a_step_is_lif(name, per_channel, backend):
    options = LIFS[name]
    reset, refractory = options.get("reset", "hard"), options.get("refractory", 0)
    orders = options.get("orders")
    neuron = fuse(lif_step(**options))
    x, decay, theta = leaves(torch.randn(37, 2, 5, 3) + 0.4, torch.rand(5), torch.rand(5) + 0.5)
    if not per_channel:
        decay, theta = 0.6, 1.0
    given = {"decay": decay, "theta": theta, "v_reset": 0.1}
    more = {}
    if options.get("gain"):
        given["gain"] = more["gain"] = 1.25
    if reset == "trace":
        given["rho"] = more["trace_decay"] = 0.7
    if orders is not None:
        P, Q = orders
        alpha, beta = [0.3, -0.2][:P], [0.5, 0.25, -0.125][: Q + 1]
        more["synapse"] = alpha, beta
        # `iir` takes float32 coefficients, so the step is given tensors.
        given |= {f"alpha{k + 1}": torch.tensor(a) for k, a in enumerate(alpha)}
        given |= {f"beta{k}": torch.tensor(b) for k, b in enumerate(beta)}
    v0 = torch.rand(2, 5, 3, requires_grad=True)
    start = [v0] + [0.0] * (len(neuron.state_names) - 1)
    s, state = neuron(x, tuple(start), backend=backend, **given)
    theirs = "cpp" if backend == "cpp" else "torch"
    s2, state2 = lif(
        x,
        State(v0),
        decay=decay,
        v_threshold=theta,
        v_reset=0.1,
        reset=reset,
        detach_reset=options.get("detach", False),
        refractory=refractory,
        surrogate=options.get("surrogate", snnkernels.Triangle()),
        backend=theirs,
        **more,
    )
    assert 0.02 < s.mean() < 0.98
    assert same(s, s2)
    assert same(state.v, state2.v)
    if refractory:
        assert same(state.wait, state2.refractory)
    if reset == "trace":
        assert same(state.r, state2.trace)
    if orders is not None:
        rows = [getattr(state, n) for n in state._fields if n[0] in "fx"]
        assert not rows or same(torch.stack(rows), state2.synapse)
    wanted = [x, v0]
    arriving = [torch.randn_like(s), torch.randn_like(state.v)]
    ours = torch.autograd.grad([s, state.v], wanted, arriving)
    others = torch.autograd.grad([s2, state2.v], wanted, arriving)
    more_than_two_terms = orders is not None and (orders[0] + orders[1] > 1 or reset == "trace")
    for a, b in zip(ours, others, strict=True):
        assert near(a, b) if more_than_two_terms else same(a, b)


@pytest.mark.parametrize("reset", ("hard", "soft"))
def test_gradients_of_lif_parameters(reset, backend):
    neuron = fuse(lif_step(reset=reset))
    x, decay, theta = leaves(torch.randn(50, 3, 5, 4) + 0.4, torch.rand(5), torch.rand(5) + 0.5)
    s, state = neuron(x, decay=decay, theta=theta, v_reset=0.0, backend=backend)
    s2, state2 = lif(
        x.double(), decay=decay.double(), v_threshold=theta.double(), reset=reset, backend="torch"
    )
    if not torch.equal(s.double(), s2):
        pytest.skip("a spike of float64 differs")
    g, gv = torch.randn_like(s), torch.randn_like(state.v)
    ours = torch.autograd.grad([s, state.v], [decay, theta], [g, gv])
    others = torch.autograd.grad([s2, state2.v], [decay, theta], [g.double(), gv.double()])
    for a, b in zip(ours, others, strict=True):
        assert near(a, b.float(), 2e-5)


# --- shipped neurons

_FUNCTIONS = ("eif",)  # with a function in the forward pass


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("learned", (False, True))
def test_shipped_neurons_are_the_loop(name, learned, backend):
    step = STEPS[name]
    neuron = fuse(step)
    (x,) = leaves(torch.randn(41, 2, 4, 3) * 0.8 + 0.3)
    scale = {"brf": 60.0, "adlif": 8.0, "se_adlif": 8.0}.get(name, 1.0)
    x = (x.detach() * scale).requires_grad_()
    defaults = {k: v for k, v in neuron.parameters.items() if type(v) is float}
    values = {}
    if learned:
        values = {
            k: (torch.full((4,), v) * (1 + 0.01 * torch.rand(4))).requires_grad_()
            for k, v in defaults.items()
            if k != "dt"
        }
    s, state = neuron(x, backend=backend, **values)
    shaped = {k: v.view(4, 1) for k, v in values.items()}
    s2, *state2 = loop(step, x, [0.0] * len(state), **shaped)
    assert s.mean() > 0.01
    exact = name not in _FUNCTIONS or backend == "torch"
    assert same(s, s2)
    assert all((same if exact else near)(a, b) for a, b in zip(state, state2, strict=True))
    wanted = [x, *values.values()]
    arriving = [torch.randn_like(s), *(torch.randn_like(v) for v in state)]
    found = torch.autograd.grad([s, *state], wanted, arriving, allow_unused=True)
    others = torch.autograd.grad([s2, *state2], wanted, arriving, allow_unused=True)
    for k, (a, b) in enumerate(zip(found, others, strict=True)):
        zero = torch.zeros_like(wanted[k])
        assert near(zero if a is None else a, zero if b is None else b, 1e-6 if k == 0 else 3e-5)


MASKS = ("logical_not", "logical_and", "logical_or", "logical_xor")
UNARY = {n for n in LOWER if n in OPERATIONS and OPERATIONS[n].arity == 1}
UNARY |= {"square", "relu", "ceil", "sgn"}
GIVEN = {
    "clamp": lambda x, v: x.clamp(-0.5, 0.75),
    "clamp_max": lambda x, v: x.clamp_max(0.5),
    "clamp_min": lambda x, v: x.clamp_min(0.5),
    "hardtanh": lambda x, v: torch.nn.functional.hardtanh(x, -0.5, 0.75),
    "where": lambda x, v: torch.where(x > v, v, x),
    "masked_fill": lambda x, v: x.masked_fill(x > v, 0.5),
    "log": lambda x, v: x.abs().log(),
    "sqrt": lambda x, v: x.abs().sqrt(),
    "pow": lambda x, v: x.abs() ** (1 + v),
    **{
        n: lambda x, v, n=n: getattr(torch, n)(*(x > 0, v > x)[: 1 + (n[8:] != "not")])
        for n in MASKS
    },
}


@pytest.mark.parametrize("name", sorted(n for n in LOWER if "backward" not in n and n[:3] != "bit"))
def test_every_operation_that_is_allowed_has_its_derivative(name):
    def step(x, v):
        if name in GIVEN:
            y = GIVEN[name](x, v)
        else:
            operation = getattr(torch, name)
            y = operation(x) if name in UNARY else operation(x, v)
        return y + x, 0.5 * v + x

    x = torch.randn(5, 3, 7, requires_grad=True)
    y, state = fuse(step)(x, 0.25, backend="torch")
    y2, v2 = loop(step, x, [0.25])
    assert same(y, y2) and same(state.v, v2)
    arriving = [torch.randn_like(y), torch.randn_like(v2)]
    (dx,) = torch.autograd.grad([y, state.v], x, arriving)
    (dx2,) = torch.autograd.grad([y2, v2], x, arriving)
    assert near(dx, dx2, 2e-6)


@pytest.mark.parametrize("name", STEPS)
def test_a_loss_of_the_last_states_alone(name, backend):
    """No gradient arrives on the outputs: zeros for every neuron, not for the first few."""
    x = torch.randn(9, 2, 37) * 0.8 + 0.3
    found = []
    for each in (backend, "torch"):
        (leaf,) = leaves(x)
        _, state = fuse(STEPS[name])(leaf, backend=each)
        found.append(torch.autograd.grad(sum(v.sum() for v in state), leaf)[0])
    assert near(*found, 1e-5)


FUNCTIONS = {
    "exp": torch.exp,
    "log": lambda a: torch.log(a.abs()),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "cos": torch.cos,
    "sqrt": lambda a: a.abs().sqrt(),
    "pow": lambda a: a.abs() ** 1.75,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_within_two_ulp(name, backend):
    def step(x, v):
        return FUNCTIONS[name](x), v + x

    x = torch.cat([torch.randn(4000) * 3, torch.linspace(-80, 80, 1001)]).view(1, -1)
    y, _ = fuse(step)(x, backend=backend)
    exact = FUNCTIONS[name](x.double())
    size = exact.float().abs()
    ulp = (torch.nextafter(size, torch.tensor(math.inf)) - size).double()
    assert ((y.double() - exact).abs() / ulp).max() <= 2
    if name == "sqrt" and backend == "cpp":
        assert same(y.squeeze(0), exact.float().squeeze(0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_every_layout_and_dtype(shape, dtype, backend):
    values = torch.randn(SHAPES[shape].sizes)
    x = SHAPES[shape].arrange(values.to(dtype))
    (x,) = [x.detach().requires_grad_()]
    decay = torch.tensor(0.75, requires_grad=True)
    neuron = fuse(leaky)
    s, state = neuron(x, 0.1, decay=decay, backend=backend)
    s2, state2 = neuron(x.detach().contiguous(), 0.1, decay=decay.detach(), backend="torch")
    assert s.dtype == dtype and s.stride() == torch.empty_like(x).stride()
    assert same(s, s2) and same(state.v, state2.v)
    g = torch.randn_like(s)
    dx, ddecay = torch.autograd.grad([s, state.v], [x, decay], [g, torch.ones_like(state.v)])
    (other,) = leaves(x.detach().contiguous())
    again = neuron(other, 0.1, decay=decay, backend="torch")
    dx2, ddecay2 = torch.autograd.grad(
        [again[0], again[1].v], [other, decay], [g.contiguous(), torch.ones_like(state.v)]
    )
    assert same(dx, dx2) and near(ddecay, ddecay2, 1e-5)


def test_several_inputs_and_recorded_outputs(backend):
    def two(x, y, v, w, *, a):
        v = a * v + x
        w = w + v * y
        return spike(w), v, w, v, w

    x, y = leaves(torch.randn(19, 2, 3, 5), torch.randn(19, 2, 3, 5))
    a = torch.rand(3, requires_grad=True)
    neuron = fuse(two, inputs=2, outputs=("x", "float32", "float32"))
    out = neuron((x, y), a=a, backend=backend)
    *flat, state = out
    other = loop(two, (x, y), [0.0, 0.0], a=a.view(3, 1))
    assert all(same(p, q) for p, q in zip((*flat, *state), other, strict=True))
    arriving = [torch.randn_like(o) for o in other]
    found = torch.autograd.grad((*flat, *state), [x, y, a], arriving)
    others = torch.autograd.grad(other, [x, y, a], arriving)
    assert all(near(p, q, 2e-6) for p, q in zip(found, others, strict=True))
    low = neuron((x.bfloat16(), y.bfloat16()), a=a, backend=backend)
    assert [t.dtype for t in low[:3]] == [torch.bfloat16, torch.float32, torch.float32]


def test_what_depends_on_parameters_alone_runs_at_their_shape(backend):
    def plif(x, v, *, w):
        v = v + (x - v) * torch.sigmoid(w)
        s = spike(v - 1)
        return s, v * (1 - s)

    x = torch.randn(23, 2, 300) * 3
    w = torch.tensor(0.37, requires_grad=True)
    neuron = fuse(plif)
    s, state = neuron(x, w=w, backend=backend)
    s2, v2 = loop(plif, x, [0.0], w=w)
    assert same(s, s2) and same(state.v, v2)
    ours = torch.autograd.grad(state.v.sum(), w)[0]
    assert near(ours, torch.autograd.grad(v2.sum(), w)[0], 1e-5)
    program = parse(trace(plif, 1, 1, 1, ("w",), {}).program)
    assert "sigmoid" in [i.operation for i in program.once]
    assert "sigmoid" not in [i.operation for i in program.forward + program.adjoint]


def test_no_kernel_for_float64_but_a_reference():
    x = torch.randn(9, 2, 3, dtype=torch.float64, requires_grad=True)

    def smooth(x, v, *, a):
        v = torch.tanh(a * v + x)
        return torch.sigmoid(v) * v, v

    a = torch.rand(3, dtype=torch.float64, requires_grad=True)
    v = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    neuron = fuse(smooth)

    def call(x, v, a):
        s, state = neuron(x, v, a=a)
        return s, state.v

    assert torch.autograd.gradcheck(call, (x, v, a))


def _smooth(step):
    """The step with the surrogate's primitive in place of the spike."""
    space = dict(step.__globals__, spike=lambda u, surrogate, strict=False: surrogate.primitive(u))
    twin = types.FunctionType(step.__code__, space, step.__name__)
    twin.__kwdefaults__ = step.__kwdefaults__
    return twin


@pytest.mark.parametrize("name", ("alif", "brf", "qif", "eif", "izhikevich"))
def test_gradients_of_smooth_twins_are_numeric(name):
    neuron = fuse(_smooth(STEPS[name]))
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    numbers = {k: v for k, v in neuron.parameters.items() if type(v) is float and k != "dt"}
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in numbers.values()]

    def call(x, *values):
        s, state = neuron(x, **dict(zip(numbers, values, strict=True)))
        return s, *state

    assert torch.autograd.gradcheck(call, (x, *values))


def test_expanded_gradients(backend):
    x = torch.randn(19, 2, 3, 4)
    neuron = fuse(leaky)
    found = []
    for expand in (False, True):
        (leaf,) = leaves(x)
        s, _ = neuron(leaf, decay=0.5, backend=backend)
        g = torch.full((), 0.25).expand_as(s)
        s.backward(g if expand else g.contiguous())
        found.append(leaf.grad)
    assert same(*found)
