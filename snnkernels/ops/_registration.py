"""Registration of the private ops under the public ones, and what they share: walks and buffers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snnkernels.core.strides import Layout, common_layout, lay_out_like

library = torch.library.Library("snnkernels", "DEF")


def register(name: str, schema: str, run: Callable, buffers: Callable) -> None:
    """Register one private op.

    Args:
        name: without the namespace.
        schema: arguments and results, in the language of torch.library.
        run: allocates with ``buffers`` and fills.
        buffers: the outputs, unfilled: what the op does under a tracer. Both may have None in the
            place of a tensor, as ATen's ops where an output is not asked for.
    """
    library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA", "MPS", "XPU"):  # the last two have no kernels, but BNTT runs
        library.impl(name, run, device)
    torch.library.register_fake(f"snnkernels::{name}", buffers, lib=library)


def optional(names: tuple[str, ...]) -> str:
    """Optional tensors of these names, as a part of a schema."""
    return ", ".join(f"Tensor? {name}" for name in names)


def nothing(like: Tensor) -> Tensor:
    """An output that is not wanted; one for each, as outputs of an op must not be the same."""
    return like.new_empty(0, dtype=torch.float32)


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
