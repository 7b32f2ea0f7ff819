"""`spike`: the step function with a surrogate derivative, for steps that are written by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snnkernels.core.surrogates import Surrogate, Triangle


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor, derivative: Callable[[Tensor], Tensor], strict: bool):
        ctx.save_for_backward(u)
        ctx.derivative = derivative
        return (u > 0 if strict else u >= 0).to(u.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor):
        return g * ctx.derivative(*ctx.saved_tensors), None, None


def spike(
    u: Tensor,
    surrogate: Surrogate | Callable[[Tensor], Tensor] = Triangle(),  # noqa: B008, it is frozen
    strict: bool = False,
) -> Tensor:
    """Spikes where u is at or above 0, with a surrogate as derivative.

    For the steps of `snnkernels.fuse`, and in any other PyTorch code.

    Args:
        u: what lies above the threshold, any shape, a floating dtype.
        surrogate: a `Surrogate`, or a function that gives the derivative, elementwise, of u.
            Default: ``Triangle()``.
        strict: fire only above 0. Default: False.

    Returns:
        1 where u >= 0 (``u > 0`` with strict), else 0, in the shape and dtype of u.

    Raises:
        TypeError: u is no floating-point tensor, or surrogate is neither.

    Example:
        >>> import torch, snnkernels
        >>> snnkernels.spike(torch.tensor([-0.5, 0.0, 2.0])).tolist()
        [0.0, 1.0, 1.0]
    """
    if not isinstance(u, Tensor) or not u.is_floating_point():
        got = f"a tensor of {u.dtype}" if isinstance(u, Tensor) else repr(u)
        raise TypeError(f"u must be a floating-point tensor; got {got}")
    derivative = surrogate.derivative if isinstance(surrogate, Surrogate) else surrogate
    if not callable(derivative):
        raise TypeError(f"surrogate must be a Surrogate or a function of u; got {surrogate!r}")
    return _Spike.apply(u, derivative, bool(strict))
