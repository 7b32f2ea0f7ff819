"""The layer `BNTT`: batch normalisation through time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnkernels.core.checks import check_positive, check_wholes, is_number
from snnkernels.nn._chunks import InChunks
from snnkernels.ops.bntt import NormaliseSteps, _per_step


class BNTT(InChunks, nn.Module):
    """Batch normalisation with its own statistics and scale at every time step, and no shift.

    One op over the whole sequence. A sequence shorter than ``steps`` uses the first of them (early
    exit). Being one batch norm for each step it is no `torch.nn.BatchNorm2d`:
    ``SyncBatchNorm.convert_sync_batchnorm`` leaves it as it is, and each process has statistics of
    its own.

    An in-place operation may follow it, where autograd raises if the backward pass needs the
    output (float32 and float64 on a CPU).

    Kim & Panda, "Revisiting batch normalization for training low-latency deep spiking neural
    networks from scratch", 2020.

    Args:
        channels: C.
        steps: the most steps of a sequence.
        eps: added to the variance, > 0. Default: 1e-4.
        momentum: weight of the new batch in the running statistics, in [0, 1], or None for their
            mean over all batches. Default: 0.1.

    Attributes:
        weight: the scale gamma, `[steps, C]`.
        running_mean: `[steps, C]`, used in evaluation.
        running_var: `[steps, C]`, unbiased, used in evaluation.
        num_batches_tracked: int64 `[steps]`, batches that had each step; only with
            ``momentum=None``.

    Shape:
        x `[T, N, C, *]` with T <= steps, in any memory format; output the same. Statistics are
        float32 for bfloat16 and float16 input.
    """

    def __init__(
        self, channels: int, steps: int, *, eps: float = 1e-4, momentum: float | None = 0.1
    ) -> None:
        super().__init__()
        check_wholes(channels=channels, steps=steps)
        check_positive(eps=eps)
        if momentum is not None and not (is_number(momentum) and 0 <= momentum <= 1):
            raise ValueError(f"momentum must be None or a number in [0, 1]; got {momentum!r}")
        self.channels, self.steps, self.eps, self.momentum = channels, steps, eps, momentum
        self.weight = nn.Parameter(torch.ones(steps, channels))
        self.register_buffer("running_mean", torch.zeros(steps, channels))
        self.register_buffer("running_var", torch.ones(steps, channels))
        if momentum is None:
            self.register_buffer("num_batches_tracked", torch.zeros(steps, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every step by itself."""
        if x.ndim < 3 or x.shape[2] != self.channels:
            raise ValueError(
                f"x must be [T, N, C, *] with C = channels = {self.channels}; got {list(x.shape)}"
            )
        steps = x.shape[0]
        first, last = self._steps_before, self._steps_before + steps
        if last > self.steps:
            raise ValueError(f"x must have at most steps = {self.steps} time steps; got {last}")
        weight = self.weight[first:last]
        if not self.training:
            scale = weight * (self.running_var[first:last] + self.eps).rsqrt()
            shift = _per_step(-self.running_mean[first:last] * scale, x.ndim)
            return torch.addcmul(shift, x, _per_step(scale, x.ndim)).to(x.dtype)
        samples = x[0, :, 0].numel() if steps else 0
        if samples < 2:
            raise ValueError(
                f"x must have more than one value per step and channel in training, not {samples}: "
                f"got {list(x.shape)}"
            )
        out, mean, rstd = NormaliseSteps.apply(x, weight, self.eps)
        with torch.no_grad():
            var = (rstd**-2 - self.eps) * (samples / (samples - 1))  # unbiased
            share = self.momentum
            if share is None:
                tracked = self.num_batches_tracked[first:last].add_(1)
                share = tracked.reciprocal().to(self.running_mean.dtype)[:, None]
            for running, new in ((self.running_mean, mean), (self.running_var, var)):
                running[first:last].lerp_(new.to(running.dtype), share)
        return out

    def extra_repr(self) -> str:
        return f"{self.channels}, steps={self.steps}, eps={self.eps}, momentum={self.momentum}"
