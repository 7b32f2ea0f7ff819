"""What the public ops share: checks of the input, layouts, registration of the private ops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snnkernels.core.strides import Layout, common_layout, lay_out_like

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

library = torch.library.Library("snnkernels", "DEF")


def register(name: str, schema: str, run: Callable, buffers: Callable) -> None:
    """Register one private op.

    Args:
        name: without the namespace.
        schema: arguments and results, in the language of torch.library.
        run: allocates with ``buffers`` and fills.
        buffers: the outputs, unfilled: what the op does under a tracer.
    """
    library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA", "MPS", "XPU"):  # the last two have no kernels, but BNTT runs
        library.impl(name, run, device)
    torch.library.register_fake(f"snnkernels::{name}", buffers, lib=library)


def nothing(like: Tensor) -> Tensor:
    """An output that is not wanted; one for each, as outputs of an op must not be the same."""
    return like.new_empty(0, dtype=torch.float32)


def only_once(op: Callable, what: str) -> Callable:
    """``op`` as the last of its kind in a graph: it has no derivative, and says so."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            return op(*arguments)

        @staticmethod
        def backward(ctx, *_):
            raise RuntimeError(
                f"{what} cannot be differentiated twice. Call backward() or torch.autograd.grad() "
                "without differentiating its result again"
            )

    def run(*arguments):
        return Once.apply(*arguments) if torch.is_grad_enabled() else op(*arguments)

    return run


def check_input(x: Tensor) -> None:
    """Raise where x is no sequence that the ops take."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor [T, N, *]; got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"x must be float32, bfloat16, float16 (or float64 with backend 'torch'); got {x.dtype}"
        )
    if x.ndim < 2:
        raise ValueError(f"x must be [T, N, *], at least two dimensions; got {list(x.shape)}")


def check_values(name: str, value: Tensor, x: Tensor) -> None:
    """Raise where a tensor of coefficients has the wrong kind, place or values."""
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating-point tensor; got {value.dtype}")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, x is on {x.device}; they must be the same")
    # A look at the values would stop a GPU, and a graph that is being traced has none.
    if not torch.compiler.is_compiling() and value.device.type == "cpu" and value.isnan().any():
        raise ValueError(f"{name} must not be NaN; got {value.tolist()}")


def lay_out(
    out: Tensor, *inputs: Tensor | None, one_row: bool = False
) -> tuple[Layout, tuple[Tensor | None, ...]]:
    """The walk over ``out`` and ``inputs``, of which those that do not fit it are copied."""
    layout = common_layout(out, *inputs, one_row=one_row)
    if any(r is None and t is not None for r, t in zip(layout.inputs, inputs, strict=True)):
        inputs = tuple(
            t if rows is not None or t is None else lay_out_like(t, out)
            for rows, t in zip(layout.inputs, inputs, strict=True)
        )
        layout = common_layout(out, *inputs, one_row=one_row)
    return layout, inputs


def in_memory_order(rows: Tensor | None, like: Tensor) -> Tensor | None:
    """A state in the memory order of the output, copied only where it is not."""
    if rows is None or rows.stride() == like.stride():
        return rows
    return torch.empty_strided(
        like.shape, like.stride(), dtype=rows.dtype, device=rows.device
    ).copy_(rows)
