"""From tensors to the launch of a kernel."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from snnkernels.backends.triton.equations import INTERPRETED
from snnkernels.backends.triton.launch_table import (
    Launch,
    Row,
    compiler_options,
    gpu_class,
    launches_for,
)
from snnkernels.backends.triton.launch_tuned import stored_row
from snnkernels.core.strides import Layout, Rows

NVIDIA = not INTERPRETED and torch.version.hip is None


def _in_rows(layout: Layout, block: int) -> bool:
    """Whether programs keep to one row each: they do where that leaves few lanes idle."""
    return layout.outer == 1 or -(-layout.inner // block) * block < 1.25 * layout.inner


def on_device_of(x: Tensor):
    """A context in which kernels go to the device of x."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def run(
    kernel,
    layout: Layout,
    launch: Launch,
    walked: dict[str, Rows | None],
    tensors: dict[str, Tensor | None],
    arguments: dict,
    x: Tensor,
    *,
    backward: bool,
    held: int,
) -> None:
    """Launch one kernel.

    Args:
        kernel: the jit function.
        layout: of the call.
        launch: its parameters.
        walked: strides by the prefix of their names in the kernel; None: absent.
        tensors: pointers by name.
        arguments: numbers and compile-time options by name.
        x: says on which device.
        backward: see `compiler_options`.
        held: see `Launch.fitting`.
    """
    walked = {name: rows or layout.out._replace(inner=1) for name, rows in walked.items()}
    sizes = [layout.inner, *(k for r in walked.values() for k in (r.outer, r.time))]
    align = 16 // x.element_size()
    aligned = not any(size % align for size in sizes) and _in_rows(layout, launch.block)
    launch = launch.fitting(aligned=aligned, held=held)
    align = align if aligned else 1
    wide = _in_rows(layout, launch.block)
    tiles = -(-layout.inner // launch.block)
    strides = {}
    for name, row in walked.items():
        strides[f"{name}_outer"], strides[f"{name}_time"] = row.outer // align, row.time // align
        if name != "out":
            strides[f"{name.upper()}_INNER"] = row.inner
    programs = layout.outer * tiles if wide else -(-layout.neurons // launch.block)
    with on_device_of(x):
        kernel[(programs,)](
            **tensors,
            steps=layout.steps,
            rows=layout.outer,
            inner_size=layout.inner // align,
            tiles=tiles,
            channels=layout.channels,
            channel_inner=layout.channel_inner,
            **strides,
            **arguments,
            ALIGN=align,
            WIDE=wide,
            BLOCK=launch.block,
            U=launch.ahead,
            **compiler_options(launch, NVIDIA and backward),
        )


def table_row(neurons: int, x: Tensor) -> Row:
    """The row for a call: what was measured on this machine, or what the table says."""
    if INTERPRETED:
        return launches_for("interpreter", neurons, x.dtype)
    kind = gpu_class(x.device.index)
    stored = stored_row(x.device.index, neurons, x.dtype)
    return stored or launches_for(kind, neurons, x.dtype)


def per_channel(tensor: Tensor | None) -> bool:
    """Whether a coefficient `[c]` or `[lags, c]` differs between channels."""
    return tensor is not None and tensor.ndim > 0 and tensor.shape[-1] > 1


def reduce_channels(layout: Layout, per_neuron: Tensor, out: Tensor) -> None:
    """Sum `[M]` into one value, or into one per channel."""
    inner = layout.channel_inner if out.numel() > 1 else layout.neurons
    by_channel = per_neuron.view(-1, out.numel(), inner)
    out.copy_(by_channel.sum((0, 2), dtype=torch.float64).view(out.shape))
