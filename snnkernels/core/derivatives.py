"""The derivatives that there are: backward, once, under torch.func too; an error for any other."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps

import torch


class BackwardOnly(torch.autograd.Function):
    """Base of functions that have a backward pass and no other derivative.

    vmap runs them once for each value. Without a ``jvp``, PyTorch raises where forward mode is
    asked for; one that raised by itself would keep torch.compile from tracing the function.
    """

    generate_vmap_rule = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # `apply` asks for it at every call, and it takes longer to find out than to be told.
        cls.forward.__signature__ = inspect.signature(cls.forward)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        """Keep nothing."""


def only_once(what: str) -> Callable[[Callable], Callable]:
    """Make a function whose results cannot be differentiated: trying it is an error.

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


def asks_for_gradients(*tensors: torch.Tensor | None) -> bool:
    """Whether a call with these tensors has a backward pass, as far as can be told."""
    if is_transformed():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def in_forward_mode() -> bool:
    """Whether tensors may carry a tangent, which a function without a ``jvp`` must refuse."""
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0


def is_transformed() -> bool:
    """Whether a transform of torch.func is at work, under which tensors do not tell their values.

    Nor do they tell there whether a gradient is asked for.
    """
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
