"""The Triton kernels of BNTT in the interpreter, against batch norm in float64 step by step."""

from __future__ import annotations

import pytest
import torch

from snnkernels.nn.norm import BNTT
from snnkernels.ops import bntt
from tests.tools.cases import DTYPES
from tests.tools.targets import TARGETS

interpreted = pytest.mark.skipif(
    not any(target.interpreted for target in TARGETS), reason="Triton is not in its interpreter"
)
EPS = 1e-4
# [T, N, C, H, W]: no power of two, no multiple of a tile, channels in several blocks, one row.
SHAPES = (
    (2, 3, 3, 7, 5),
    (3, 2, 16, 5, 11),
    (2, 1, 40, 9, 7),
    (1, 3, 130, 3, 3),
    (2, 5, 8, 7, 9),
    (2, 2, 1, 4, 4),
    (2, 1, 5, 1, 1),
)


def steps_last(x):
    """Every step channels_last."""
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def make(shape, dtype, mean=1.0, std=3.0, device="cpu"):
    generator = torch.Generator().manual_seed(sum(shape))
    x, g = (torch.randn(shape, generator=generator) for _ in range(2))
    weight = torch.randn(shape[0], shape[2], generator=generator)
    x, g = (steps_last(t.to(device, dtype)) for t in (x * std + mean, g))
    return x, weight.to(device), g


def exact(x, weight, g, eps=EPS):
    """out, mean, rstd, dx, dweight in float64."""
    x, weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    dims = (1, 3, 4)
    mean = x.mean(dims, keepdim=True)
    rstd = (x.var(dims, correction=0, keepdim=True) + eps).rsqrt()
    out = (x - mean) * rstd * weight[:, None, :, None, None]
    flat = [t.detach().flatten(1) for t in (mean, rstd)]
    return out.detach(), *flat, *torch.autograd.grad(out, (x, weight), g.double())


def assert_near(got, want, dtype):
    """Each of `exact`, to a few roundings of the dtype, or of float32 where that is what it is."""
    for name, a, b in zip(("out", "mean", "rstd", "dx", "dweight"), got, want, strict=True):
        assert a.dtype == (dtype if name in ("out", "dx") else torch.float32), name
        eps = torch.finfo(a.dtype).eps
        scale = b.abs().max().item()
        torch.testing.assert_close(
            a.double(), b, rtol=2 * eps, atol=16 * torch.finfo(torch.float32).eps * scale, msg=name
        )


def run(x, weight, g, keep_output=False):
    """The kernels' own results, into tensors full of NaN."""
    from snnkernels.backends import triton

    assert triton.takes_bntt(x, g)
    mean, rstd, dweight = (torch.full_like(weight, float("nan")) for _ in range(3))
    out, dx = (steps_last(torch.full(x.shape, float("nan"), dtype=x.dtype)) for _ in range(2))
    triton.bntt_forward(x, weight, EPS, out=out, mean=mean, rstd=rstd)
    kept = (out, None) if keep_output else (x, mean)
    triton.bntt_backward(g, *kept, rstd, weight, dx=dx, dweight=dweight)
    return out, mean, rstd, dx, dweight


@interpreted
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
def test_batch_norm_of_each_step(shape, dtype, nan_filled):
    inputs = make(shape, dtype)
    got = run(*inputs)
    assert_near(got, exact(*inputs), dtype)
    for a, b in zip(got, run(*inputs), strict=True):
        assert torch.equal(a, b)  # no order is left to chance


@interpreted
def test_many_parts_and_long_ones(monkeypatch, nan_filled):
    from snnkernels.backends.triton import bntt as kernels

    inputs = make((2, 4, 3, 20, 20), torch.float32)
    assert kernels.cut(2, 1600, 3, 1).parts > 1
    want = exact(*inputs)
    assert_near(run(*inputs), want, torch.float32)
    monkeypatch.setattr(kernels, "PROGRAMS", 1)
    assert kernels.cut(2, 1600, 3, 1).parts == 1
    assert_near(run(*inputs), want, torch.float32)


@interpreted
def test_from_the_output(nan_filled):
    inputs = make((2, 3, 16, 5, 6), torch.float32)
    assert_near(run(*inputs, keep_output=True), exact(*inputs), torch.float32)


@interpreted
@pytest.mark.parametrize(("mean", "error"), [(1e3, 2e-6), (-1e5, 1e-4)])
def test_a_mean_far_from_zero(mean, error):
    x, weight, g = make((2, 4, 16, 15, 15), torch.float32, mean, 1.0)
    x[:, 0, :, 0] += 50  # what a part begins with is no guide to the rest of it
    out, got_mean, rstd, dx, dweight = run(x, weight, g)
    want = exact(x, weight, g)
    torch.testing.assert_close(rstd.double(), want[2], rtol=error, atol=0)
    torch.testing.assert_close(got_mean.double(), want[1], rtol=1e-7, atol=0)
    # x - mean has the rounding of the mean in it.
    rounding = abs(mean) * torch.finfo(torch.float32).eps * want[2].max() * weight.abs().max()
    assert (out - want[0]).abs().max() < 2 * rounding
    assert (dx - want[3]).abs().max() < 2 * rounding


@interpreted
@pytest.mark.parametrize("same", ["x", "g", "both"])
def test_one_step_for_all_times(same, nan_filled):
    x, weight, g = make((3, 2, 16, 5, 6), torch.float32)
    x = x[:1].expand_as(x) if same != "g" else x
    g = g[:1].expand_as(g) if same != "x" else g
    assert 0 in (x.stride(0), g.stride(0))
    assert_near(run(x, weight, g), exact(x, weight, g), torch.float32)


@interpreted
def test_nan_stays_in_its_step_and_channel():
    x, weight, g = make((2, 2, 16, 5, 6), torch.float32)
    x[1, 0, 3, 0, 0] = float("nan")
    out, mean, rstd, dx, dweight = run(x, weight, g)
    for t in (out, dx):
        assert t[1, :, 3].isnan().all() and t.isnan().sum() == t[1, :, 3].numel()
    for t in (mean, rstd, dweight):
        assert t[1, 3].isnan() and t.isnan().sum() == 1


@interpreted
def test_the_layer_runs_them(monkeypatch):
    """Where the device's backend is Triton; a gradient in other strides is copied."""
    from snnkernels.backends import triton

    monkeypatch.setattr(bntt, "choose", lambda *_: "triton")
    called = []

    def noting(name, run):
        return lambda *arguments, **outputs: (called.append(name), run(*arguments, **outputs))

    for name in ("bntt_forward", "bntt_backward"):
        monkeypatch.setattr(triton, name, noting(name, getattr(triton, name)))
    x, weight, g = make((3, 2, 16, 5, 6), torch.float32)
    layer = BNTT(16, 3)
    layer.weight.data.copy_(weight)
    out = layer(x.requires_grad_())
    assert out.stride() == x.stride()
    dx, dweight = torch.autograd.grad(out, (x, layer.weight), g.contiguous())
    assert called == ["bntt_forward", "bntt_backward"]
    want = exact(x, weight, g)
    for a, b in zip((out.detach(), dx, dweight), (want[0], *want[3:]), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.running_mean.double(), 0.1 * want[1], rtol=1e-6, atol=1e-6)
    called.clear()
    layer(x.contiguous())  # no channels_last: tensor ops
    assert not called
