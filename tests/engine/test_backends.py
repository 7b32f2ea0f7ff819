"""Every backend with kernels equals the reference bit for bit: the numeric contract."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import re
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from snnkernels import Rectangle, State, Triangle, lif
from snnkernels.backends import load
from snnkernels.core.call import NUMBERS
from tests.tools.cases import (
    AXES,
    DTYPES,
    LARGE_SHAPES,
    NEURONS,
    SHAPES,
    SURROGATES,
    VALUES,
    Neuron,
    Shape,
    every_neuron,
    make_inputs,
    pairwise,
)
from tests.tools.compare import assert_matches, assert_same, expected, run
from tests.tools.targets import TARGETS, Target

pytestmark = pytest.mark.usefixtures("nan_filled")

ALL_SHAPES = SHAPES | LARGE_SHAPES
SMALL = Shape((18, 2, 3, 5))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
neurons = pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)


@functools.lru_cache(maxsize=64)
def _expected(shape, neuron, dtype, values, seed, device):
    inputs = make_inputs(shape, neuron, dtype, values, seed)
    return expected(inputs.to(device), neuron)


def check(target: Target, shape: Shape, neuron: Neuron, dtype, values="normal", seed=0) -> None:
    """One case on one target against the reference on the same device."""
    want = _expected(shape, neuron, dtype, values, seed, target.device)
    assert_matches(run(want.inputs, neuron, target.backend), want)


def _shape_cases() -> list:
    """Every shape with every named neuron, in float32 and one of the halves by turns."""
    halves = itertools.cycle(DTYPES[1:])
    cases = []
    for pair in itertools.product(SHAPES, NEURONS):
        cases += [(*pair, torch.float32), (*pair, next(halves))]
    for large, name in zip(itertools.cycle(LARGE_SHAPES), NEURONS, strict=False):
        cases += [(large, name, dtype) for dtype in DTYPES]
    return [
        target.param(shape, name, dtype, id=f"{shape}-{name}-{str(dtype)[6:]}")
        for k, (shape, name, dtype) in enumerate(cases)
        for target in TARGETS
        if k % _every(target, shape) == 0
    ]


def _every(target: Target, shape: str) -> int:
    """Which of the cases a target runs."""
    if target.interpreted:
        return 17 if shape in SHAPES else sys.maxsize
    return 5 if target.specialises else 1


@pytest.mark.parametrize(("shape", "name", "dtype", "on"), _shape_cases())
def test_shapes(shape, name, dtype, on):
    with on.chosen():
        check(on, ALL_SHAPES[shape], NEURONS[name], dtype)


@dtypes
@neurons
@pytest.mark.parametrize("values", VALUES)
def test_values(values, neuron, dtype, target):
    check(target, SMALL, neuron, dtype, values, seed=1)


@dtypes
@pytest.mark.parametrize("part", range(24))
def test_combinations_of_options(part, dtype, target):
    # The dtype decides how memory is read and written, not what is computed.
    full = dtype == torch.float32 and not target.specialises
    chosen = every_neuron() if full else [Neuron(**row) for row in pairwise(AXES)]
    for neuron in chosen[part::24]:
        check(target, SMALL, neuron, dtype, seed=2)


def test_pairwise_covers_every_pair():
    rows = pairwise(AXES)
    for (a, of_a), (b, of_b) in itertools.combinations(AXES.items(), 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(of_a, of_b))
    assert len(rows) <= 60


@st.composite
def _calls(draw):
    ndim = draw(st.integers(2, 5))
    sizes = (draw(st.integers(0, 36)), *(draw(st.integers(1, 9)) for _ in range(ndim - 1)))
    order = tuple(draw(st.permutations(range(ndim))))
    expand = tuple(draw(st.sets(st.integers(0, ndim - 1), max_size=2))) if sizes[0] else ()
    shape = Shape(sizes, order, expand, draw(st.integers(1, 2)), draw(st.integers(0, 3)))
    neuron = Neuron(
        **{name: draw(st.sampled_from(values)) for name, values in AXES.items()},
        decay=draw(st.sampled_from((0.0, 0.3, 0.95, 1.0, -0.7))),
        v_threshold=draw(st.sampled_from((1.0, 0.25, 0.0, -1.0))),
        v_reset=draw(st.sampled_from((0.0, -0.1, 0.5))),
    )
    kinds = [str(d)[6:] for d in DTYPES]
    values = draw(st.sampled_from(VALUES[:2]))
    return shape, neuron, draw(st.sampled_from(kinds)), values, draw(st.integers(0, 99))


def test_any_call(target):
    @settings(max_examples=12 if target.specialises else 150, deadline=None, derandomize=True)
    @given(_calls())
    def property_holds(call):
        shape, neuron, dtype, values, seed = call
        check(target, shape, neuron, getattr(torch, dtype), values, seed)

    property_holds()


@pytest.mark.parametrize("first", (1, 7, 16))
@neurons
def test_two_calls_equal_one(neuron, first, target):
    # The second call starts where the first ended; its gradient comes back through state.v.
    inputs = make_inputs(Shape((20, 2, 3, 5)), neuron).to(target.device)

    def call(*parts):
        state = inputs.state or State()
        v = torch.zeros_like(inputs.dv) if state.v is None else state.v
        xs = [inputs.x[part].clone().requires_grad_() for part in parts]
        v = v.clone().requires_grad_()
        state, outputs = State(v, state.refractory), []
        for x in xs:
            s, state, *h = lif(
                x,
                state,
                decay=inputs.decay,
                v_threshold=inputs.v_threshold,
                backend=target.backend,
                **neuron.options(),
            )
            outputs.append((s, *h))
        s, *h = (torch.cat(o) for o in zip(*outputs, strict=True))
        arriving = [inputs.ds, inputs.dv, inputs.dh][: 2 + len(h)]
        *dx, dv = torch.autograd.grad([s, state.v, *h], (*xs, v), arriving)
        return s, state, h, (torch.cat(dx), dv)

    s, state, h, gradients = call(slice(None))
    s2, state2, h2, gradients2 = call(slice(0, first), slice(first, None))
    for name, a, b in zip(
        ("s", "v", *("h" for _ in h), "dx", "dv0"),
        (s2, state2.v, *h2, *gradients2),
        (s, state.v, *h, *gradients),
        strict=True,
    ):
        assert_same(a.detach(), b.detach(), name, strides=False)
    if neuron.refractory:
        assert_same(state2.refractory, state.refractory, "refractory")


@dtypes
@pytest.mark.parametrize("name", ("channel_hard", "everything", "scalar_soft", "refractory_soft"))
@pytest.mark.parametrize("sizes", ((17, 3, 7, 643), (3, 2, 7, 5003)))
@pytest.mark.parametrize("on", [t.param() for t in TARGETS if t.backend == "cpp"])
def test_threads_change_no_bit(on, sizes, name, dtype):
    neuron = NEURONS[name]
    inputs = make_inputs(Shape(sizes), neuron, dtype)
    with on.chosen():
        want = run(inputs, neuron, on.backend)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            got = run(inputs, neuron, on.backend)
            for field, a, b in zip(want._fields, got, want, strict=True):
                if b is not None:
                    assert_same(a, b, f"{field} with {count} threads")


ARRIVING = {
    "s.sum()": lambda s, v: (s.sum(),),
    "v.sum()": lambda s, v: (v.sum(),),
    "s and v": lambda s, v: ((s * s).sum(), v.square().sum()),
    "last s": lambda s, v: (s[-1].sum(),),
    "s over samples": lambda s, v: (s.sum(1).square().sum(),),
    "s transposed": lambda s, v: ((s.transpose(1, 2).contiguous() * 0.5).square().sum(),),
    "every second s": lambda s, v: (s[:, :, ::2].square().sum(),),
}


@pytest.mark.parametrize("how", ARRIVING)
@pytest.mark.parametrize("shape", ("three_dims", "channels_last", "batch_first", "two_dims"))
def test_gradients_of_any_strides(how, shape, target):
    if how in ("s transposed", "every second s") and shape == "two_dims":
        how = "last s"
    found = []
    for backend in ("torch", target.backend):
        inputs = make_inputs(SHAPES[shape], Neuron(start="given")).to(target.device)
        x, v = inputs.x.requires_grad_(), inputs.state.v.requires_grad_()
        s, state = lif(x, v, decay=0.9, backend=backend)
        found.append(torch.autograd.grad(ARRIVING[how](s, state.v), (x, v)))
    for name, got, want in zip(("dx", "dv0"), found[1], found[0], strict=True):
        assert_same(got, want, name, strides=False)


@pytest.mark.parametrize("wanted", [*itertools.product((False, True), repeat=4)])
def test_only_the_gradients_asked_for(wanted, target):
    neuron = NEURONS["channel_hard"]
    inputs = make_inputs(SMALL, neuron).to(target.device)
    leaves = [inputs.x, inputs.state.v, inputs.decay, inputs.v_threshold]
    all_of_them = run(inputs, neuron, target.backend)[4:]
    for leaf, want in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(want)
    s, state = lif(
        inputs.x,
        inputs.state,
        decay=inputs.decay,
        v_threshold=inputs.v_threshold,
        backend=target.backend,
        **neuron.options(),
    )
    assert s.requires_grad == state.v.requires_grad == any(wanted)
    if any(wanted):
        torch.autograd.backward((s, state.v), (inputs.ds, inputs.dv))
    for leaf, want, gradient in zip(leaves, wanted, all_of_them, strict=True):
        assert (leaf.grad is not None) == want
        if want:
            assert_same(leaf.grad, gradient, strides=False)


@pytest.mark.parametrize("idle", ("neuron_forward", "neuron_backward"))
def test_a_kernel_that_writes_nothing_shows(idle, monkeypatch, target):
    # What the fixture nan_filled is worth: every output of this call is NaN throughout.
    module = load(target.backend)
    monkeypatch.setattr(module, idle, lambda *arguments, **keywords: None)
    result = run(make_inputs(SMALL, NEURONS["everything"]).to(target.device),
                 NEURONS["everything"], target.backend)  # fmt: skip
    names = {
        "neuron_forward": ("s", "v", "refractory", "h"),
        "neuron_backward": ("dx", "dv0", "ddecay", "dv_threshold"),
    }
    for name in names[idle]:
        assert getattr(result, name).isnan().all(), name


def test_backends_have_the_same_signatures():
    # What the ops always pass; Triton's may take a launch by keyword.
    modules = {load(target.backend) for target in TARGETS}
    kernels = [f"{op}_{way}" for op in ("neuron", "iir") for way in ("forward", "backward")]
    for name in (*kernels, "why_unavailable"):
        always = set()
        for module in modules:
            taken = inspect.signature(getattr(module, name)).parameters
            always.add(tuple(n for n, p in taken.items() if p.default is p.empty))
        assert len(always) == 1, (name, always)


def test_neighbouring_surrogates_differ(target):
    # The comparison above would not notice constants that never reach a kernel.
    found = []
    for surrogate in (*SURROGATES, Triangle(2.0), Triangle(1.0, 0.4), Rectangle(0.7, 0.6)):
        neuron = dataclasses.replace(NEURONS["default"], surrogate=surrogate)
        found.append(run(make_inputs(SMALL, neuron).to(target.device), neuron, target.backend).dx)
    for a, b in itertools.combinations(found, 2):
        assert not torch.equal(a, b)


def test_numbers_are_one_record_from_python_to_the_kernels():
    """The fields of C++ and of Call, by name and order: both sides copy them as they lie."""
    text = (Path(__file__).parents[2] / "csrc" / "neuron.h").read_text()
    record = re.search(r"struct Numbers \{\n(.*?)\n\n", text, re.DOTALL)[1]
    fields = re.findall(r"\w+(?=[,;])", re.sub(r"//[^\n]*", "", record))
    assert tuple(fields) == NUMBERS
