"""Losses on spike trains and potentials `[T, N, *]`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from snnkernels.core.reference import mean_penalty
from snnkernels.nn.lif import LIF
from snnkernels.nn.readout import total
from snnkernels.ops._checks import check_filter
from snnkernels.ops.iir import iir


def spike_count_cross_entropy(s: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the classes' spike counts (Fang et al., eq. 6-7).

    Args:
        s: output spikes `[T, N, C]`.
        labels: class of each sample, int64 `[N]`.

    Returns:
        The mean over the samples, float32 (float64 for float64 spikes).

    Raises:
        ValueError: s is not `[T, N, C]`.
    """
    if s.ndim != 3:
        raise ValueError(f"s must be [T, N, C]; got {list(s.shape)}")
    return functional.cross_entropy(total(s), labels)


# Elements of the blocks of time in which the filtered difference is made, and steps at the least.
_BLOCK, _BLOCK_STEPS = 1 << 20, 32


class _VanRossum(torch.autograd.Function):
    """Half the mean over time of the squared filtered difference, summed over neurons, `[N]`.

    Runs block by block in time, the state of the filter handed over. Keeps the two spike trains and
    the states at the starts of the blocks, from which the filtered difference f is made again. The
    gradient on the difference is the adjoint filter over f, which is the filter itself from the
    last step to the first.
    """

    @staticmethod
    def forward(ctx, s, target, alpha, beta, backend):
        run = partial(iir, alpha=alpha, beta=beta, sequential=True, backend=backend)
        ctx.run, ctx.blocks = run, _blocks(s)
        total = torch.zeros(s.shape[1], dtype=torch.float64, device=s.device)
        starts, state = [], None
        for block in ctx.blocks:
            starts.append(state)
            f, state = run(_difference(s, target, block), state=state)
            total += f.square_().flatten(2).sum(2).sum(0, dtype=torch.float64)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(s, target, *starts)
        return (total / (2 * max(s.shape[0], 1))).to(torch.promote_types(s.dtype, torch.float32))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        s, target, *starts = ctx.saved_tensors
        need_s, need_target = ctx.needs_input_grad[:2]
        ds = torch.empty_like(s) if need_s else None
        dtarget = torch.empty_like(target) if need_target else None
        scale = (g / max(s.shape[0], 1)).view(-1, *(1,) * (s.ndim - 2))
        after = None
        for block, state in zip(reversed(ctx.blocks), reversed(starts), strict=True):
            f, _ = ctx.run(_difference(s, target, block), state=state)
            gradient, after = ctx.run(f.mul_(scale).flip(0), state=after)
            gradient = gradient.flip(0)
            if need_s:
                ds[block] = gradient
            if need_target:
                dtarget[block] = gradient.neg_()
        return ds, dtarget, None, None, None


def _blocks(s: Tensor) -> list[slice]:
    """Time, cut into blocks of equal length and what is left."""
    length = max(_BLOCK // max(s[:1].numel(), 1), _BLOCK_STEPS)
    return [slice(t, t + length) for t in range(0, s.shape[0], length)]


def _difference(s: Tensor, target: Tensor, block: slice) -> Tensor:
    dtype = torch.promote_types(s.dtype, torch.float32)
    return s[block].to(dtype) - target[block].to(dtype)


def van_rossum_distance(
    s: Tensor,
    target: Tensor,
    alpha: Tensor | Sequence[float],
    beta: Tensor | Sequence[float],
    *,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    r"""Distance of spike trains after a filter (Fang et al., eq. 8; van Rossum 2001).

    .. math:: E = \frac{1}{2T} \sum_i \sum_t \big( (k * s_i)_t - (k * \hat s_i)_t \big)^2

    The filter is linear, so it runs once, over the difference, in blocks of some megabytes: no
    filtered trace is stored. Between forward and backward the spike trains are kept, and one state
    of the filter for each block.

    Args:
        s: spikes `[T, N, *]`.
        target: spikes to be reached, same shape, any dtype.
        alpha: feedback coefficients of the filter k, as in `snnkernels.iir`. They do not learn.
        beta: its input coefficients.
        reduction: "mean" over the N samples, "sum", or "none" for one value per sample `[N]`.
            Default: "mean".
        backend: of the filter. Default: "auto".

    Returns:
        Float32 (float64 for float64 spikes).

    Raises:
        ValueError: shapes differ, or an unknown reduction.

    Example:
        >>> import torch
        >>> from snnkernels.nn.losses import van_rossum_distance
        >>> s = torch.zeros(2, 1, 1)
        >>> target = torch.ones(2, 1, 1)
        >>> van_rossum_distance(s, target, alpha=[], beta=[1.0]).item()
        0.5
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none'; got {reduction!r}")
    if s.ndim < 2 or s.shape != target.shape:
        raise ValueError(
            f"target must have the shape of s [T, N, *], {list(s.shape)}; got {list(target.shape)}"
        )
    alpha, beta = (c.detach() for c in check_filter("", alpha, beta, s))
    if s.ndim == 2:  # one neuron per sample
        s, target = s.unsqueeze(-1), target.unsqueeze(-1)
    each = _VanRossum.apply(s, target, alpha, beta, backend)
    return each if reduction == "none" else getattr(each, reduction)()


def potential_regulariser(
    h: Tensor,
    v_threshold: float | Tensor,
    *,
    tolerance: float,
    shift: float = 0.0,
) -> Tensor:
    r"""Keeps potentials where the surrogate's derivative is not zero (Stöckl, fig. 5.8).

    .. math:: \operatorname{mean} \max(0, |h - (\theta + \text{shift})| - \text{tolerance})^2

    Of potentials that are there, as ``record="h"`` returns them. Where they are wanted for nothing
    else, ``regulariser=(tolerance, shift)`` of `snnkernels.lif` or `snnkernels.LIF` computes the
    same on the way and stores none of them; `layer_penalties` sums it up over a network.

    Its weight in the loss is 5 to 10 in the thesis, with tolerance 0.012 (WSCNN), or 0.01 and shift
    -0.008 (RSCNN), at a threshold of 0.01.

    Args:
        h: potentials before firing `[T, N, *]`.
        v_threshold: a number, or one value per channel `[C]` (C = ``h.shape[2]``).
        tolerance: half the width of the interval without loss, in the units of h.
        shift: how far the middle of that interval lies above the threshold. Default: 0.

    Returns:
        The mean over all steps and neurons, float32 (float64 for float64 h).

    Raises:
        ValueError: a negative tolerance.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be >= 0; got {tolerance!r}")
    h = h.to(torch.promote_types(h.dtype, torch.float32))
    return mean_penalty(h, v_threshold, float(tolerance), float(shift))


def layer_penalties(model: nn.Module) -> Tensor:
    """Take the potential regularisers of a network's last forward pass, summed over its layers.

    Each is taken once: a layer that has not run since adds nothing to the next sum, and keeps no
    graph alive.

    Args:
        model: holds `snnkernels.LIF` layers with ``regulariser=(tolerance, shift)``, each of which
            kept the penalty of its last forward pass.

    Returns:
        A scalar, to be added to the loss with a weight.

    Raises:
        ValueError: no layer has a regulariser, or none has run since the last sum.

    Example:
        >>> import torch, snnkernels
        >>> from snnkernels.nn.losses import layer_penalties
        >>> layer = snnkernels.LIF(regulariser=(0.2, 0.0))
        >>> _ = layer(torch.zeros(3, 1, 4))
        >>> round(layer_penalties(layer).item(), 4)
        0.64
    """
    layers = [m for m in model.modules() if isinstance(m, LIF) and m.penalty is not None]
    if not layers:
        raise ValueError(
            "model must hold LIF layers with regulariser=(tolerance, shift) that have run since "
            "the last call; got none"
        )
    penalties = [layer.penalty for layer in layers]
    for layer in layers:
        layer.penalty = None
    return torch.stack(penalties).sum()
