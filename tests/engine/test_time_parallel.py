"""The filter with chunks of time side by side, against the sequential one and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import snnkernels
from snnkernels.ops import _time_chunks as time_parallel
from tests.engine.test_iir import KERNELS, _poles, random_filter, run
from tests.tools.compare import EPS
from tests.tools.emulation import ON_HOST, emulator, emulator_library  # noqa: F401  (fixtures)

NAMES = ("f", "state", "dx", "dalpha", "dbeta", "dstate")


@pytest.fixture(params=[t.param() for t in (*KERNELS, ON_HOST)])
def kernel(request):
    if request.param is ON_HOST:
        request.getfixturevalue("emulator")
    with request.param.chosen():
        yield request.param


@pytest.fixture
def calls(monkeypatch):
    """How many times time was cut up."""
    seen = []
    for name in ("forward", "backward"):
        original = getattr(time_parallel, name)

        def counted(*arguments, original=original, name=name, **keywords):
            seen.append(name)
            return original(*arguments, **keywords)

        monkeypatch.setattr(time_parallel, name, counted)
    return seen


@pytest.mark.parametrize("steps", (64, 79))
@pytest.mark.parametrize("channels", (None, 3))
@pytest.mark.parametrize(("P", "Q"), [(1, 0), (2, 1), (0, 3), (2, 2), (4, 4), (4, 0)])
def test_every_result_is_the_sequential_one(
    kernel, short, calls, nan_filled, P, Q, channels, steps
):
    """Far closer to the float64 reference than one wrong start would leave it."""
    alpha, beta = random_filter(P, Q, channels)
    x, df = torch.randn(2, steps, 2, 3, 5)
    state, dstate = torch.randn(2, P + Q, 2, 3, 5)
    tensors = x, alpha, beta, state, df, dstate
    got = run(*(t.to(kernel.device) for t in tensors), kernel.backend)
    want = run(*(t.double() for t in tensors), "torch")
    for name, a, b in zip(NAMES, got, want, strict=True):
        if b.numel():
            size = x.numel() ** 0.5 if name in ("dalpha", "dbeta") else b.abs().max()
            assert (a.cpu() - b).abs().max() <= 32 * EPS * size, name
    assert calls == ["forward", "backward"]


def test_only_what_is_asked_for(kernel, short, calls):
    """Fixed coefficients, no state, a gradient of one value; bfloat16; rows that are strided."""
    alpha, beta = (c.to(kernel.device) for c in random_filter(2, 1))
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(50, 7, device=kernel.device).to(dtype)
        found = []
        for sequential in (False, True):
            leaf = x.clone().requires_grad_()
            options = {"sequential": sequential, "backend": kernel.backend}
            f, state = snnkernels.iir(leaf, alpha, beta, **options)
            found.append((f.detach(), state, *torch.autograd.grad(f.sum(), leaf)))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=2 * torch.finfo(a.dtype).eps, atol=64 * EPS)
    assert calls == ["forward", "backward"] * 2


@pytest.mark.parametrize("radius", [0.5, 0.9, 0.98])
def test_the_bound_and_scipy(radius, monkeypatch, calls):
    signal = pytest.importorskip("scipy.signal")
    T = 10_000
    monkeypatch.setattr(time_parallel, "LEAST_STEPS", T)
    monkeypatch.setitem(time_parallel.MOST_NEURONS, "cpu", 6)
    b, a = (c.astype(np.float32) for c in _poles(radius))
    x = np.random.default_rng(0).standard_normal((T, 6)).astype(np.float32)
    want = signal.lfilter(b.astype(float), a.astype(float), x.astype(float), axis=0)
    own = np.abs(signal.lfilter(b, a, x, axis=0) - want).max()
    impulse = signal.lfilter([1.0], a.astype(float), np.eye(1, T)[0])
    for kernel in KERNELS:
        if kernel.interpreted:
            continue
        with kernel.chosen():
            call = [torch.tensor(c, device=kernel.device) for c in (x, -a[1:], b)]
            f = snnkernels.iir(*call, backend=kernel.backend)[0].cpu().double()
            exact = snnkernels.iir(*call, sequential=True, backend=kernel.backend)[0].cpu().double()
        assert calls and calls.pop() == "forward"
        error = np.abs(f.numpy() - want).max()
        assert error <= max(4 * own, 1e-5 * np.abs(want).max()), kernel
        bound = 2 * EPS * np.abs(impulse).sum() * np.abs(want).max()
        assert (f - exact).abs().max() <= bound, kernel
    assert not calls


def test_opcheck(kernel):
    ops = torch.ops.snnkernels
    alpha, beta = (c.view(-1, 1).to(kernel.device) for c in random_filter(2, 1))
    x, state, df = (torch.randn(n, 2, 3, device=kernel.device) for n in (50, 3, 50))
    call = (x, state, alpha, beta, 16, 2, kernel.backend)
    torch.library.opcheck(ops.iir_forward.default, call)
    checkpoints = ops.iir_forward(*call)[2]
    wanted = [True] * 4
    backward = (
        df,
        state,
        alpha,
        beta,
        x,
        state,
        checkpoints,
        x.stride(),
        16,
        wanted,
        2,
        kernel.backend,
    )
    torch.library.opcheck(ops.iir_backward.default, backward)


def test_where_it_is_taken(calls):
    """From T, M and the poles alone; never where the kernels' own bits are asked for."""
    long = torch.randn(time_parallel.LEAST_STEPS, 1)
    snnkernels.iir(long, [0.5], [1.0], backend="cpp")
    assert calls.pop() == "forward"
    snnkernels.iir(long, [0.5], [1.0], backend="cpp", sequential=True)
    snnkernels.iir(long[1:], [0.5], [1.0], backend="cpp")
    snnkernels.iir(long, [], [1.0], backend="cpp")
    snnkernels.iir(long, [1.001], [1.0], backend="cpp")  # a pole outside the unit circle
    snnkernels.iir(long.expand(-1, 5), [0.5], [1.0], backend="cpp")
    batch_first = torch.randn(2, time_parallel.LEAST_STEPS).transpose(0, 1)
    snnkernels.iir(batch_first, [0.5], [1.0], backend="cpp")
    assert not calls
    whole = snnkernels.iir(long[1:], [0.5], [1.0], backend="cpp")[0]
    parts = [snnkernels.iir(long[1:500], [0.5], [1.0], backend="cpp")]
    parts.append(snnkernels.iir(long[500:], [0.5], [1.0], parts[0][1], backend="cpp"))
    assert torch.equal(torch.cat([f for f, _ in parts]), whole)
