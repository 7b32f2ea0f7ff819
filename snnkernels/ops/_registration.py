"""Registration of the private ops under the public ones, and what they share: walks and buffers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

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


def run_vmap_one_by_one(name: str) -> None:
    """Let torch.vmap run a private op once for each value; PyTorch does so without lists alone."""
    op = getattr(torch.ops.snnkernels, name)

    def rule(info, dims, *arguments):
        def one(argument, dim, k: int):
            if isinstance(argument, (list, tuple)):
                dims = dim if isinstance(dim, (list, tuple)) else [dim] * len(argument)
                return [one(a, d, k) for a, d in zip(argument, dims, strict=True)]
            return argument if dim is None else argument.select(dim, k)

        found = [
            op(*(one(a, d, k) for a, d in zip(arguments, dims, strict=True)))
            for k in range(info.batch_size)
        ]
        together = tree_map(lambda *each: torch.stack(each), *found)
        return together, tree_map(lambda _: 0, together)

    torch.library.register_vmap(f"snnkernels::{name}", rule, lib=library)


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
