"""The derivatives that there are: backward, once, under torch.func too; an error for any other."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch


class BackwardOnly(torch.autograd.Function):
    """Base of functions that have a backward pass and no other derivative.

    vmap runs them once for each value.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        """Keep nothing."""

    @staticmethod
    def jvp(ctx, *_):
        """There is none: kernels go back over time, not forward with a tangent."""
        raise NotImplementedError(
            "neurons, and filters on a backend with kernels, have no forward-mode derivative: use "
            "reverse mode (backward(), torch.autograd.grad, torch.func.grad, vjp or jacrev)"
        )


def only_once(what: str) -> Callable[[Callable], Callable]:
    """Make a function the last of its kind in a graph: it has no derivative, and says so.

    Args:
        what: begins the error's sentence.

    Returns:
        A decorator of functions from tensors, and others, to tuples of tensors and None.
    """

    def decorate(adjoint: Callable) -> Callable:
        class Once(BackwardOnly):
            @staticmethod
            def forward(*arguments):
                return adjoint(*arguments)

            @staticmethod
            def backward(ctx, *_):
                raise RuntimeError(
                    f"{what} cannot be differentiated twice. Call backward() or "
                    "torch.autograd.grad() without differentiating its result again"
                )

        @wraps(adjoint)
        def run(*arguments):
            return Once.apply(*arguments) if torch.is_grad_enabled() else adjoint(*arguments)

        return run

    return decorate


def is_transformed() -> bool:
    """Whether a transform of torch.func is at work, under which tensors do not tell their values.

    Nor do they tell there whether a gradient is asked for.
    """
    return torch._C._are_functorch_transforms_active()
