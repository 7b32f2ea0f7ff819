"""The CUDA kernels, run on the CPU by an emulation of blocks and threads: bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch

import snnkernels
from snnkernels.backends.cuda import launch as cuda_launch
from snnkernels.core.call import Call, Outputs
from snnkernels.core.strides import Layout, Rows
from tests.engine import test_general as general
from tests.engine import test_iir as iir
from tests.tools.cases import (
    AXES,
    DTYPES,
    LARGE_SHAPES,
    NEURONS,
    SHAPES,
    VALUES,
    Neuron,
    Shape,
    make_inputs,
    pairwise,
)
from tests.tools.compare import assert_matches, assert_same, expected, run
from tests.tools.emulation import ON_HOST, emulator, emulator_library  # noqa: F401  (fixtures)

pytestmark = pytest.mark.usefixtures("nan_filled")

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


def check(shape: Shape, neuron: Neuron, dtype, values: str = "normal") -> None:
    want = expected(make_inputs(shape, neuron, dtype, values), neuron)
    assert_matches(run(want.inputs, neuron, "cuda"), want)


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "no_steps"])
def test_shapes(emulator, shape, name):  # noqa: F811
    kinds = itertools.cycle(itertools.product(DTYPES, (1, 132)))
    turn = list(SHAPES).index(shape) + list(NEURONS).index(name)
    dtype, emulator.multiprocessors = next(itertools.islice(kinds, turn % 6, None))
    check(SHAPES[shape], NEURONS[name], dtype)


@dtypes
@pytest.mark.parametrize("values", VALUES)
def test_values(emulator, values, dtype):  # noqa: F811
    emulator.multiprocessors = 1
    for neuron in NEURONS.values():
        check(Shape((18, 2, 3, 8)), neuron, dtype, values)


@dtypes
def test_pairs_of_options(emulator, dtype):  # noqa: F811
    for row in pairwise(AXES):
        check(Shape((37, 2, 3, 8)), Neuron(**row), dtype)


def test_many_blocks(emulator):  # noqa: F811
    for shape, dtype in zip(LARGE_SHAPES.values(), DTYPES, strict=True):
        check(shape, NEURONS["default"], dtype)


# Multiprocessors, neurons and steps that lead to each kernel, with many blocks, the last of them
# not full: few steps; many; fewer neurons in a thread; one, because nothing divides the number.
SIZES = [(1, 1032, 3), (1, 1032, 8), (1, 1032, 37), (1, 516, 37), (1, 258, 21), (1, 259, 21)]
POLICIES = [("hard", False), ("hard", True), ("soft", False), ("soft", True), ("none", False)]


@dtypes
@pytest.mark.parametrize("policy", POLICIES)
def test_every_kernel(emulator, dtype, policy):  # noqa: F811
    reset, detach = policy
    for emulator.multiprocessors, neurons, steps in SIZES:
        check(Shape((steps, neurons)), Neuron(reset, detach), dtype)
    for neurons in (1032, 259):
        check(Shape((9, neurons)), Neuron(reset, detach, record="h", coefficients="scalar"), dtype)
    emulator.multiprocessors = 8  # a ring: more stages than it has, its last tile not full
    check(Shape((280, 72 * (4 // dtype.itemsize))), Neuron(reset, detach), dtype)

    io = f"<{cuda_launch.IO[dtype]}, snn::Reset::{reset}"
    backward = f"{io}, {'true' if detach else 'false'}, "
    built = {n for n in emulator.kernel_names() if io in n and ("fwd" in n or backward in n)}
    built = {n for n in built if "general" not in n}
    assert built and built <= set(emulator.launched), built - set(emulator.launched)


# Neurons and steps that lead to each general kernel, with many blocks, the last of them not full.
@dtypes
@pytest.mark.parametrize("reset", general.RESETS)
def test_every_general_kernel(emulator, dtype, reset):  # noqa: F811
    emulator.multiprocessors = 1
    for shape, orders, record in (((37, 516), (2, 2), None), ((50, 3, 3, 43), (1, 1), "h")):
        x, want, arriving = general.make(shape, orders, True, 0.8, reset, dtype)
        if record:
            arriving["h"] = torch.randn(shape)
        general.check(ON_HOST, x, want, arriving, reset=reset, refractory=1, record=record)
    io = f"<{cuda_launch.IO[dtype]}, snn::Reset::{reset}"
    built = {n for n in emulator.kernel_names() if io in n and "general" in n}
    assert len(built) == 3 and built <= set(emulator.launched), built - set(emulator.launched)


def test_general_kernels_take_broadcast_and_absent_sequences(emulator):  # noqa: F811
    emulator.multiprocessors = 1
    for dims in ((0,), (1,), (2,)):
        x, want, arriving = general.make((35, 66, 4), (2, 2), True, 0.8, "trace")
        x = x.narrow(dims[0], 0, 1).expand(35, 66, 4)
        general.check(ON_HOST, x, want, arriving, reset="trace")
        for absent in arriving:
            rest = {name: g for name, g in arriving.items() if name != absent}
            general.check(ON_HOST, x, want, rest, reset="trace")


@pytest.mark.parametrize("steps", (1, 15, 16, 17, 63, 64, 65, 240, 257))
def test_rings_of_any_length(emulator, steps, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cuda_launch, "RING_STEPS", 1)
    cuda_launch.forward.cache_clear(), cuda_launch.backward.cache_clear()
    for dtype in DTYPES:
        for shape in (Shape((steps, 40)), Shape((steps, 3, 80), order=(1, 0, 2))):
            check(shape, Neuron(start="given"), dtype)
    cuda_launch.forward.cache_clear(), cuda_launch.backward.cache_clear()
    assert all("ring" in kernel for kernel in emulator.launched)


@pytest.mark.parametrize(("P", "Q"), [(0, 0), (0, 1), (0, 4), (1, 2)])
def test_coefficients_of_filters_with_and_without_outputs(emulator, P, Q):  # noqa: F811
    # Past one checkpoint: those of a filter without outputs have no size and no address.
    x, df = torch.randn(2, 50, 3)
    alpha, beta = iir.random_filter(P, Q)
    state, dstate = torch.randn(2, P + Q, 3)
    gradients = {}
    for backend in ("cuda", "torch"):
        gradients[backend] = iir.run(x, alpha, beta, state, df, dstate, backend)[3:5]
    for name, got, want in zip(("dalpha", "dbeta"), *gradients.values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, msg=name)


def test_sums_of_one_type_are_apart(emulator):  # noqa: F811
    assert emulator.library.sums_are_apart()


@pytest.mark.parametrize("name", ["v_threshold", "v_reset", "gain"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_numbers_beyond_float32_are_infinite(emulator, name, sign):  # noqa: F811
    x = torch.tensor([[0.5], [2.0], [float("inf")], [1.0]])
    want = snnkernels.lif(x, decay=0.5, backend="torch", **{name: sign * float("inf")})
    for backend in ("cuda", "cpp"):
        got = snnkernels.lif(x, decay=0.5, backend=backend, **{name: sign * 1e39})
        assert_same(got[0], want[0], "s")
        assert_same(got[1].v, want[1].v, "v")


def test_more_steps_than_32_bits_count_are_refused():
    layout = Layout(2**31, 1, 1, 1, 1, Rows(0, 1, 1), (Rows(0, 0, 0),))
    with pytest.raises(ValueError, match="x has 2147483648 steps; backend 'cuda' takes up to"):
        cuda_launch.pack_call(layout, Call(), None, Outputs())


@dtypes
def test_every_filter_kernel(emulator, dtype):  # noqa: F811
    emulator.multiprocessors = 1
    for (P, Q), neurons in itertools.product(((2, 1), (1, 4)), (516, 387)):
        x, df, alpha_beta = *torch.randn(2, 37, neurons).to(dtype), iir.random_filter(P, Q)
        state, dstate = torch.randn(2, P + Q, neurons)
        for learn in (True, False):
            iir.check(ON_HOST, x, *alpha_beta, state, df, dstate, learn)
    built = {n for n in emulator.kernel_names() if f"iir_fwd_kernel<{cuda_launch.IO[dtype]}" in n}
    built |= {n for n in emulator.kernel_names() if f"iir_bwd_kernel<{cuda_launch.IO[dtype]}" in n}
    assert len(built) == 10 and built <= set(emulator.launched), built - set(emulator.launched)
