"""Batch normalisation through time as one op over `[T, N, C, *]` (Kim & Panda 2020)."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from snnkernels.backends import choose, load
from snnkernels.core.derivatives import BackwardOnly, is_transformed, only_once
from snnkernels.core.output_memory import empty_like, empty_strided
from snnkernels.ops._registration import register

# Values per block of steps on a CPU: what one pass leaves in the cache, the next one finds there.
_BLOCK = 1 << 19


def _blocks(x: Tensor) -> list[slice]:
    """Runs of steps to be worked on one after the other; all of them at once on a GPU."""
    steps, size = x.shape[0], max(x[0].numel(), 1)
    block = steps if x.device.type != "cpu" else max(1, _BLOCK // size)
    return [slice(t, min(t + block, steps)) for t in range(0, steps, block)]


def _per_step(value: Tensor, ndim: int) -> Tensor:
    """`[T, C]` to be broadcast over `[T, N, C, *]`."""
    return value[:, None, :].reshape(value.shape[0], 1, value.shape[1], *(1,) * (ndim - 3))


def _normalise_step(
    x: Tensor, weight: Tensor, out: Tensor, mean: Tensor, rstd: Tensor, eps: float
) -> None:
    """Fill out, mean and rstd of one step, x `[N, C, *]`."""
    results = out, mean, rstd
    arguments = (weight, None, None, None, True, 0.0, eps)
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    if x.is_contiguous() or channels_last:
        names = ("out", "save_mean", "save_invstd")
        torch.ops.aten.native_batch_norm.out(
            x, *arguments, **dict(zip(names, results, strict=True))
        )
    else:  # in other strides it is wrong where it writes into given tensors
        for to, result in zip(results, torch.native_batch_norm(x, *arguments), strict=True):
            to.copy_(result)


def _like(x: Tensor) -> Tensor:
    """An empty sequence laid out as x, every step of it channels_last where those of x are."""
    if x.ndim == 5 and x[:1].flatten(0, 1).is_contiguous(memory_format=torch.channels_last):
        last = (*x.shape[:2], *x.shape[3:], x.shape[2])
        strides = torch.empty(last, device="meta").movedim(-1, 2).stride()
        return empty_strided(x.shape, strides, x.dtype, x)
    return empty_like(x)


def _kernels(x: Tensor) -> ModuleType | None:
    """The backend whose kernels run BNTT of x, None where tensor ops do."""
    name = choose("auto", x.device.type, x.dtype, "bntt", 0, None, x.device.index)
    backend = None if name == "torch" else load(name)
    return backend if backend and backend.takes_bntt(x) else None


# --- the private ops -----------------------------------------------------------------------------


def _forward_buffers(x, weight, eps):
    exact = torch.promote_types(x.dtype, torch.float32)
    mean = x.new_empty(x.shape[0], x.shape[2], dtype=exact)
    return _like(x), mean, torch.empty_like(mean)


def _bntt_forward(x, weight, eps):
    outputs = out, mean, rstd = _forward_buffers(x, weight, eps)
    weight = weight.to(mean.dtype).contiguous()
    if backend := _kernels(x):
        backend.bntt_forward(x, weight, eps, out=out, mean=mean, rstd=rstd)
    elif x.device.type == "cpu":
        for step in zip(x, weight, out, mean, rstd, strict=True):
            _normalise_step(*step, eps)
    else:
        dims = (1, *range(3, x.ndim))
        centre = x.mean(dims, keepdim=True, dtype=mean.dtype)
        centred = x - centre
        mean.copy_(centre.view_as(mean))
        rstd.copy_(((centred * centred).mean(dims) + eps).rsqrt())
        torch.mul(centred, _per_step(weight * rstd, x.ndim), out=out)
    return outputs


def _backward_buffers(dout, kept, mean, rstd, weight):
    return _like(kept), torch.empty_like(rstd)


def _bntt_backward(dout, kept, mean, rstd, weight):
    dx, dweight = _backward_buffers(dout, kept, mean, rstd, weight)
    weight = weight.to(rstd.dtype).contiguous()
    if backend := _kernels(kept):
        dout = dout if backend.takes_bntt(dout) else _like(kept).copy_(dout)
        backend.bntt_backward(dout, kept, mean, rstd, weight, dx=dx, dweight=dweight)
        return dx, dweight
    ndim, dims = kept.ndim, (1, *range(3, kept.ndim))
    samples = kept[0, :, 0].numel()
    for part in _blocks(kept):
        g = dout[part]
        if mean is None:
            normal = kept[part] * _per_step(weight[part].reciprocal(), ndim)
        else:
            normal = (kept[part] - _per_step(mean[part], ndim)) * _per_step(rstd[part], ndim)
        along = (g * normal).mean(dims, dtype=rstd.dtype)
        dweight[part] = along * samples
        normal.mul_(_per_step(along, ndim)).add_(g.mean(dims, keepdim=True, dtype=rstd.dtype))
        scale = _per_step(weight[part] * rstd[part], ndim)
        torch.mul(torch.sub(g, normal, out=normal), scale, out=dx[part])
    return dx, dweight


register(
    "bntt_forward",
    "(Tensor x, Tensor weight, float eps) -> (Tensor out, Tensor mean, Tensor rstd)",
    _bntt_forward,
    _forward_buffers,
)
register(
    "bntt_backward",
    "(Tensor dout, Tensor kept, Tensor? mean, Tensor rstd, Tensor weight) "
    "-> (Tensor dx, Tensor dweight)",
    _bntt_backward,
    _backward_buffers,
)
_run_backward = only_once("BNTT")(torch.ops.snnkernels.bntt_backward)


def _invertible(x: Tensor, weight: Tensor) -> bool:
    """Whether out / weight is (x - mean) / sqrt(var + eps) to a few roundings."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    if torch.compiler.is_compiling() or is_transformed():
        return False
    # A product with anything larger than the root of the smallest normal number is normal itself,
    # or so small beside 1 that its rounding is nothing.
    return bool(weight.abs().min() >= torch.finfo(x.dtype).tiny ** 0.5)


class NormaliseSteps(BackwardOnly):
    """out = weight (x - mean) / sqrt(var + eps), with mean and variance per step and channel.

    On a CPU the bits are those of one `torch.nn.BatchNorm2d` per step in the same memory format.
    The backward pass there works from the output, which the neuron that follows keeps anyway:
    (x - mean) / sqrt(var + eps) is out / weight (Rota Bulò et al. 2018). x is kept where that
    quotient is no better than the output's rounding: in half precision, and where a weight is 0 or
    next to it. It is kept on a GPU, which would have to stop for a look at the weights, and in a
    compiled graph, and under torch.func.

    Where every step is channels_last, float32 runs in the C++ kernels on a CPU, and float32,
    bfloat16 and float16 in the Triton kernels on a GPU; all else, float64 too, in tensor ops.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.snnkernels.bntt_forward(x, weight, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, _ = inputs
        out, mean, rstd = output
        ctx.invertible = _invertible(x, weight)
        ctx.save_for_backward(out if ctx.invertible else x, mean, rstd, weight)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dout: Tensor | None, *_):
        if dout is None:
            return None, None, None
        kept, mean, rstd, weight = ctx.saved_tensors
        mean = None if ctx.invertible else mean
        dx, dweight = _run_backward(dout, kept, mean, rstd, weight)
        return dx, dweight.to(weight.dtype), None
