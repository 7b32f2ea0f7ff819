"""The general neuron: synapse, gain and trace, against the reference and against the plain LIF."""

from __future__ import annotations

import functools
import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import snnkernels
from snnkernels import ATan, Rectangle, State, Triangle
from snnkernels.backends import load
from snnkernels.core import reference
from snnkernels.core.call import Arriving, Call, Coefficient, Gradients
from tests.tools import naive
from tests.tools.cases import GENERAL_OPTIONS
from tests.tools.compare import assert_parameter_grad_close, assert_same
from tests.tools.emulation import ON_HOST, emulator, emulator_library  # noqa: F401  (fixtures)
from tests.tools.targets import TARGETS

KERNELS = [t for t in TARGETS if "general" in getattr(load(t.backend), "OPS", ())]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RESETS = ("hard", "soft", "none", "trace")
SHAPE = (21, 2, 5, 3)
# P, Q of the synapse (None: no synapse), one value for each channel, gain, refractory, detached.
PARTS = (
    (None, False, None, 0, False),
    (None, True, 0.7, 2, True),
    ((1, 0), False, 0.7, 0, False),
    ((2, 1), True, None, 3, False),
    ((2, 2), False, 1.3, 0, True),
    ((0, 2), True, 0.6, 0, False),
)

ORDERS = ((1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (0, 1))


@pytest.fixture(params=[t.param() for t in (*KERNELS, ON_HOST)])
def kernel(request):
    if request.param is ON_HOST:
        request.getfixturevalue("emulator")
        request.getfixturevalue("nan_filled")
    with request.param.chosen():
        yield request.param


def make(shape, orders, per_channel, gain, reset, dtype=torch.float32, with_state=True, learn=True):
    """Arguments of `lif`, and gradients to send back."""
    C = (shape[2],) if per_channel and len(shape) > 2 else ()

    def coefficient(mean):
        return mean + 0.1 * torch.rand(C)

    want = {"decay": coefficient(0.8), "v_threshold": coefficient(0.9)}
    if gain is not None:
        want["gain"] = coefficient(gain) if learn else gain
    if reset == "trace":
        want["trace_decay"] = coefficient(0.6)
    if orders is not None:
        P, Q = orders
        want["alpha"], want["beta"] = 0.4 * torch.rand(*C, P), torch.randn(*C, Q + 1)
    x = torch.randn(shape).to(dtype)
    rest = shape[1:]
    if with_state:
        want["v"] = torch.randn(rest)
        if orders is not None:
            want["synapse"] = torch.randn(sum(orders), *rest)
        if reset == "trace":
            want["trace"] = torch.rand(rest)
    arriving = {"s": torch.randn(shape).to(dtype), "v": torch.randn(rest)}
    if orders is not None:
        arriving["synapse"] = torch.randn(sum(orders), *rest)
    if reset == "trace":
        arriving["trace"] = torch.randn(rest)
    return x, want, arriving


def run(x, want, arriving, backend, device="cpu", learned=None, **options):
    """Outputs and gradients by name, of all arguments or of those learned."""
    leaves = {"x": x, **want}
    leaves = {
        k: t.detach().to(device).requires_grad_(learned is None or k in learned)
        for k, t in leaves.items()
    }
    call = {k: leaves[k] for k in ("decay", "v_threshold", "gain", "trace_decay") if k in leaves}
    if "alpha" in leaves:
        call["synapse"] = leaves["alpha"], leaves["beta"]
    state = State(**{k: leaves[k] for k in ("v", "synapse", "trace") if k in leaves})
    s, after, *more = snnkernels.lif(leaves["x"], state, backend=backend, **call, **options)
    outputs = {"s": s, **{k: p for k, p in after._asdict().items() if p is not None}}
    asked = {"h": options.get("record"), "penalty": options.get("regulariser")}
    outputs |= zip((name for name, value in asked.items() if value), more, strict=True)
    used = [(outputs[k], g.to(device)) for k, g in arriving.items() if outputs[k].requires_grad]
    leaves = {k: leaf for k, leaf in leaves.items() if leaf.requires_grad}
    grads = torch.autograd.grad(
        [o for o, _ in used],
        list(leaves.values()),
        [g for _, g in used],
        allow_unused=True,
        materialize_grads=True,
    )
    outputs = {k: t.detach() for k, t in outputs.items()}
    return outputs, dict(zip(leaves, grads, strict=True))


def check(kernel, x, want, arriving, **options):
    got, got_grads = run(x, want, arriving, kernel.backend, kernel.device, **options)
    ref, ref_grads = run(x, want, arriving, "torch", kernel.device, **options)
    assert got.keys() == ref.keys()
    for name in ref:
        assert_same(got[name], ref[name], name, strides=name == "s")
    for name in ("x", "v", "synapse", "trace"):
        if name in ref_grads:
            assert_same(got_grads[name], ref_grads[name], f"d{name}", strides=False)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_equals_the_reference(kernel, parts, reset):
    orders, per_channel, gain, refractory, detach = parts
    cases = itertools.product(DTYPES, (True, False))
    turn = PARTS.index(parts) * len(RESETS) + RESETS.index(reset)
    for dtype, with_state in kernel.some(cases, turn):
        x, want, arriving = make(SHAPE, orders, per_channel, gain, reset, dtype, with_state)
        options = {"reset": reset, "refractory": refractory, "detach_reset": detach}
        check(kernel, x, want, arriving, surrogate=Triangle(width=2.0), **options)


@pytest.mark.parametrize("orders", ORDERS, ids=str)
def test_fixed_synapses(kernel, orders):
    """Without gradients of coefficients, of every order, with and without a final gradient."""
    cases = (
        ("hard", False, torch.float32),
        ("trace", False, torch.bfloat16),
        ("soft", True, torch.float32),
    )
    for reset, per_channel, dtype in kernel.some(cases, sum(orders)):
        x, want, arriving = make((37, 2, 5, 7), orders, per_channel, None, reset, dtype, False)
        x, want, arriving = (
            {k: t.to(kernel.device) for k, t in part.items()} for part in ({"x": x}, want, arriving)
        )
        synapse = want.pop("alpha"), want.pop("beta")
        for last in kernel.some((True, False), orders[0]):
            found = []
            for backend in (kernel.backend, "torch"):
                leaf = x["x"].clone().requires_grad_()
                s, state = snnkernels.lif(
                    leaf, synapse=synapse, reset=reset, backend=backend, **want
                )
                ends = [(state.v, arriving["v"]), (state.synapse, arriving["synapse"])] * last
                outputs, gradients = zip((s, arriving["s"]), *ends, strict=True)
                found.append((s.detach(), *torch.autograd.grad(outputs, leaf, gradients)))
            for name, a, b in zip(("s", "dx"), *found, strict=True):
                assert_same(a, b, name, strides=False)


@pytest.mark.parametrize("shape", [(40, 1100), (1, 3, 7), (2, 2, 3, 500), (17, 3, 65), (0, 2, 3)])
def test_shapes(kernel, shape):
    for reset in kernel.some(("hard", "trace"), shape[0]):
        x, want, arriving = make(shape, (2, 2), False, 0.8, reset)
        check(kernel, x, want, arriving, reset=reset, surrogate=Rectangle(width=1.0))


@pytest.mark.parametrize("reset", ("hard", "soft", "none"))
def test_no_gradient_on_spikes_adds_no_term(kernel, reset):
    """Not even 0 times the surrogate of a potential that is NaN."""
    x = torch.randn(20, 3, 7, device=kernel.device)
    x[3, 0], x[6, 1], x[9, 2] = float("inf"), float("-inf"), float("nan")
    options = {"reset": reset, "detach_reset": True, "surrogate": ATan(), "record": "h"}
    for arrives in ("v", "h"):
        found = []
        for backend in (kernel.backend, "torch"):
            leaf = x.clone().requires_grad_()
            _, state, h = snnkernels.lif(leaf, backend=backend, **options)
            out = state.v if arrives == "v" else h
            found.append(*torch.autograd.grad(out, leaf, torch.ones_like(out)))
        torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)
        assert found[0].isfinite().any()


def test_channels_last(kernel):
    x, want, arriving = make((18, 2, 5, 4, 3), (2, 1), True, 0.8, "trace")
    x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (18, 2))
    check(kernel, x, want, arriving, reset="trace")


@pytest.mark.parametrize("reset", RESETS)
def test_splitting_a_call_changes_no_bit(kernel, reset):
    x, want, _ = make((23, 3, 7), (2, 1), False, 0.8, reset, with_state=False)
    want = {k: t.to(kernel.device) for k, t in want.items()}
    call = {"synapse": (want.pop("alpha"), want.pop("beta")), **want, "reset": reset}
    lif = functools.partial(snnkernels.lif, backend=kernel.backend, refractory=2, **call)
    x = x.to(kernel.device)
    whole, end = lif(x)
    for cut in (1, 16, 22):
        first, state = lif(x[:cut])
        second, state = lif(x[cut:], state)
        assert torch.equal(torch.cat([first, second]), whole)
        for a, b in zip(state, end, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("reset", ("hard", "soft", "none"))
def test_absent_parts_change_no_bit(kernel, reset):
    """A filter that passes x on, gain 1 as a tensor: the bits of the plain neuron."""
    x = torch.randn(40, 3, 9, device=kernel.device)
    ds = torch.randn_like(x)
    one = torch.ones(1, device=kernel.device)
    results = []
    for more in ({}, {"synapse": (one[:0], one), "gain": one[0]}):
        leaf = x.clone().requires_grad_()
        s, state = snnkernels.lif(leaf, backend=kernel.backend, reset=reset, **more)
        (dx,) = torch.autograd.grad(s, leaf, ds)
        results.append((s.detach(), state.v.detach(), dx))
    for a, b in zip(*results, strict=True):
        assert_same(a, b)


def test_fused_equals_filter_then_neuron(kernel):
    x, want, _ = make((30, 2, 5), (2, 1), True, None, "hard", with_state=False)
    want = {k: t.to(kernel.device) for k, t in want.items()}
    synapse = want.pop("alpha"), want.pop("beta")
    x = x.to(kernel.device)
    s, _ = snnkernels.lif(x, synapse=synapse, backend=kernel.backend, **want)
    i, _ = snnkernels.iir(x, *synapse, backend="torch")
    assert torch.equal(s, snnkernels.lif(i, backend=kernel.backend, **want)[0])


@pytest.mark.parametrize("per_channel", (False, True))
@pytest.mark.parametrize("reset", ("hard", "trace"))
@pytest.mark.parametrize("orders", ORDERS, ids=str)
def test_parameter_gradients(kernel, orders, reset, per_channel):
    """By the numeric contract, against float64 on the same spikes."""
    x, want, arriving = make((70, 3, 5, 4), orders, per_channel, 0.8, reset)
    options = {"reset": reset, "surrogate": Triangle(width=2.0)}
    out, got = run(x, want, arriving, kernel.backend, kernel.device, **options)
    _, eager = run(x, want, arriving, "torch", kernel.device, **options)
    terms = naive.general_terms(x, want, arriving, out["s"].cpu(), **options)
    assert len(terms) == 3 + (reset == "trace") + sum(orders) + 1
    for name, each in terms.items():
        pair = [grads[name.partition("[")[0]].cpu() for grads in (got, eager)]
        if "[" in name:
            pair = [g[..., int(name[-2])] for g in pair]
        assert_parameter_grad_close(*pair, each, name)


@st.composite
def _calls(draw):
    """Keywords of `make`, names of the arguments that are learned, options of `lif`, a seed."""
    shape = draw(st.sampled_from(((1, 3, 7), (16, 2, 5), (33, 1, 3, 20), (40, 2, 65))))
    reset = draw(st.sampled_from(RESETS))
    made = {
        "shape": shape,
        "orders": draw(st.sampled_from((None, *itertools.product(range(3), repeat=2)))),
        "per_channel": draw(st.booleans()),
        "gain": draw(st.sampled_from((None, 0.8))),
        "reset": reset,
        "dtype": draw(st.sampled_from(DTYPES)),
        "with_state": draw(st.booleans()),
    }
    names = ("x", "v", "decay", "v_threshold", "gain", "trace_decay", "alpha", "beta", "synapse")
    learned = {"x"} | draw(st.sets(st.sampled_from(names)))
    options = {
        "reset": reset,
        "detach_reset": draw(st.booleans()),
        "refractory": draw(st.sampled_from((0, 2))),
        "record": draw(st.sampled_from((None, "h"))),
    }
    return made, learned, options, draw(st.integers(0, 999))


def test_random_calls(kernel, nan_filled):
    """Whichever coefficients are learned: outputs and dx bit for bit, coefficients closely."""

    @settings(max_examples=10 if kernel.specialises else 200, deadline=None, derandomize=True)
    @given(_calls())
    def property_holds(call):
        made, learned, options, seed = call
        torch.manual_seed(seed)
        case = make(**made)
        options["surrogate"] = Triangle(width=2.0)
        got, got_grads = run(*case, kernel.backend, kernel.device, learned, **options)
        want, want_grads = run(*case, "torch", kernel.device, learned, **options)
        for name in want:
            assert_same(got[name], want[name], name, strides=False)
        for name, gradient in want_grads.items():
            if name in ("x", "v", "synapse", "trace"):
                assert_same(got_grads[name], gradient, f"d{name}", strides=False)
            else:
                torch.testing.assert_close(got_grads[name], gradient, rtol=2e-3, atol=2e-2)

    property_holds()


@pytest.mark.parametrize("reset", RESETS)
def test_gradcheck_of_the_smooth_twin(reset):
    x, want, _ = make((5, 2, 3), (2, 1), True, 0.8, reset)
    names = list(want)
    leaves = [t.double().requires_grad_() for t in (x, *want.values())]

    def smooth(x, *values):
        value = dict(zip(names, values, strict=True))
        state = State(value["v"], None, value["synapse"], value.get("trace"))
        s, after, h, penalty = reference.lif(
            x,
            state,
            decay=value["decay"],
            v_threshold=value["v_threshold"],
            v_reset=0.1,
            reset=reset,
            detach_reset=False,
            refractory=0,
            surrogate=snnkernels.Sigmoid(),
            record="h",
            synapse=(value["alpha"], value["beta"]),
            gain=value["gain"],
            trace_decay=value.get("trace_decay"),
            regulariser=(0.3, -0.1),
            smooth=True,
        )
        return s, after.v, after.synapse, h, penalty

    assert torch.autograd.gradcheck(smooth, leaves)


def test_opcheck(kernel):
    ops = torch.ops.snnkernels
    to = {"device": kernel.device}
    x, v = torch.randn(20, 2, 3, **to), torch.randn(2, 3, **to)
    alpha, beta = torch.full((2, 1), 0.3, **to), torch.ones(2, 1, **to)
    coefficient, rows = Coefficient(torch.tensor(0.9, **to)), torch.randn(3, 2, 3, **to)
    call = Call(
        decay=coefficient,
        v_threshold=Coefficient(number=1.0),
        gain=coefficient,
        trace_decay=coefficient,
        alpha=alpha,
        beta=beta,
        state=State(v, None, rows, v),
        reset=RESETS.index("trace"),
        refractory=2,
        checkpoint_every=16,
        surrogate_p=1.0,
        surrogate_q=1.0,
    )
    tensors, *rest = call.flatten()
    forward = (x, *tensors, *rest, kernel.backend)
    torch.library.opcheck(ops.neuron_forward.default, forward)
    checkpoints = ops.neuron_forward(*forward)[1]
    arriving = Arriving(s=torch.randn_like(x), v=v, synapse=rows, trace=v)
    wanted = [name != "v_threshold" for name in Gradients._fields]
    backward = (x, *tensors, checkpoints, *arriving, *rest, kernel.backend, wanted)
    torch.library.opcheck(ops.neuron_backward.default, backward)


def test_errors_name_the_argument():
    x = torch.zeros(4, 2, 3)
    filtered = ([0.5], [1.0])
    cases = [
        ({"reset": "trace"}, "trace_decay goes with"),
        ({"trace_decay": 0.5}, "trace_decay goes with"),
        ({"reset": "trace", "trace_decay": float("nan")}, "trace_decay must not be NaN"),
        ({"gain": float("nan")}, "gain must not be NaN"),
        ({"gain": torch.zeros(2)}, "gain must be 0-d"),
        ({"synapse": ([float("nan")], [1.0])}, "synapse alpha must not be NaN"),
        ({"synapse": ([0.1] * 3, [1.0])}, "synapse alpha has order 3"),
        ({"synapse": ([0.1], [1.0] * 4)}, "synapse beta has order 3"),
        ({"synapse": (torch.zeros(2, 1), [1.0])}, "synapse alpha must be"),
        ({"state": State(synapse=torch.zeros(1, 2, 3))}, "state.synapse is set"),
        ({"state": State(trace=torch.zeros(2, 3))}, "state.trace is set"),
        ({"state": State(synapse=torch.zeros(2, 2, 3)), "synapse": filtered}, "state.synapse must"),
    ]
    for arguments, words in cases:
        with pytest.raises(ValueError, match=words):
            snnkernels.lif(x, **arguments)
    for synapse in (3, ([0.5],), (1.0, 2.0, 3.0)):
        with pytest.raises(TypeError, match="synapse must be None or a pair"):
            snnkernels.lif(x, synapse=synapse)


def test_the_papers_equations():
    """Eq. 5a-e step by step in plain numbers."""
    a, b, rho, theta = 0.9, 0.7, 0.6, 0.5
    alpha, beta = (0.5, -0.1), (0.2, 0.8)
    x = 0.5 + torch.randn(100, 1, dtype=torch.float64)
    s, _ = snnkernels.lif(
        x,
        decay=a,
        gain=b,
        v_threshold=theta,
        reset="trace",
        trace_decay=rho,
        synapse=(alpha, beta),
    )
    v = r = i1 = i2 = x1 = o = 0.0
    for t, x_t in enumerate(x.flatten().tolist()):
        i = alpha[0] * i1 + alpha[1] * i2 + beta[0] * x_t + beta[1] * x1
        r = rho * r + o
        v = a * v + b * i - theta * r
        o = float(v >= theta)
        assert s[t].item() == o
        i1, i2, x1 = i, i1, x_t
    assert 0 < s.mean() < 1


def test_parts_cover_every_option():
    given = set()
    for orders, per_channel, gain, _, _ in PARTS:
        for reset in RESETS:
            given |= set(make(SHAPE, orders, per_channel, gain, reset)[1])
    given |= {"synapse"} if {"alpha", "beta"} <= given else set()
    assert given >= GENERAL_OPTIONS - {"regulariser"}  # test_regulariser.py
