"""`spike`: the step function with a surrogate derivative, for steps that are written by hand."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from snnkernels.core.derivatives import BackwardOnly, only_once
from snnkernels.core.surrogates import Surrogate, Triangle


class _Spike(BackwardOnly):
    @staticmethod
    def forward(u: Tensor, derivative: Callable[[Tensor], Tensor], strict: bool):
        return (u > 0 if strict else u >= 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        u, ctx.derivative, _ = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx, g: Tensor):
        return *_adjoint(g, *ctx.saved_tensors, ctx.derivative), None, None


@only_once("a spike, whose surrogate gradient has no derivative here,")
def _adjoint(g: Tensor, u: Tensor, derivative: Callable[[Tensor], Tensor]) -> tuple[Tensor]:
    return (g * derivative(u),)


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
