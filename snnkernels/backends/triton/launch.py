"""From tensors to the launch of a kernel."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from snnkernels.backends.triton.equations import INTERPRETED
from snnkernels.backends.triton.launch_table import (
    Launch,
    Limit,
    Row,
    compiler_options,
    gpu_class,
    launches_for,
)
from snnkernels.backends.triton.launch_tuned import stored_row
from snnkernels.backends.triton.rows import NUMBER, PER_CHANNEL, VALUE, Tile
from snnkernels.core.call import Coefficient
from snnkernels.core.strides import Layout, Rows

MAX_STEPS = (1 << 31) - 64  # they are counted in 32 bits, in pieces
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
    every: int,
    walked: dict[str, Rows | None],
    arguments: dict,
    x: Tensor,
    *,
    backward: bool,
    limit: Limit,
) -> None:
    """Launch one kernel.

    Args:
        kernel: the jit function.
        layout: of the call.
        launch: its parameters.
        every: steps between checkpoints; 0: there are none.
        walked: strides by the prefix of their names in the kernel; None: absent.
        arguments: the kernel's other arguments by name.
        x: says on which device.
        backward: see `compiler_options`.
        limit: of what the call needs of the kernel.

    Raises:
        ValueError: more than MAX_STEPS steps.
    """
    if layout.steps > MAX_STEPS:
        raise ValueError(
            f"x has {layout.steps} steps; backend 'triton' takes at most {MAX_STEPS}: call it on "
            "parts, with the state that the part before returns, or use another backend"
        )
    walked = {name: rows or layout.out._replace(inner=1) for name, rows in walked.items()}
    sizes = [layout.inner, *(k for r in walked.values() for k in (r.outer, r.time))]
    align = 16 // x.element_size()
    aligned = not any(size % align for size in sizes) and _in_rows(layout, launch.block)
    launch = launch.within(limit, aligned)
    align = align if aligned else 1
    block, wide = launch.block, _in_rows(layout, launch.block)
    strides = {}
    for name, row in walked.items():
        strides[f"{name}_outer"], strides[f"{name}_time"] = row.outer // align, row.time // align
    inner = tuple(row.inner for name, row in walked.items() if name != "out")
    programs = layout.outer * -(-layout.inner // block) if wide else -(-layout.neurons // block)
    with on_device_of(x):
        kernel[(programs,)](
            **arguments,
            steps=layout.steps,
            rows=layout.outer,
            inner_size=layout.inner // align,
            channels=layout.channels,
            channel_inner=layout.channel_inner,
            **strides,
            TILE=Tile(block, launch.ahead, every, align, wide, inner),
            **compiler_options(launch, NVIDIA and backward),
        )


def table_row(neurons: int, x: Tensor) -> Row:
    """The row for a call: what was measured on this machine, or what the table says."""
    if INTERPRETED:
        return launches_for("interpreter", neurons, x.dtype)
    kind = gpu_class(x.device.index)
    stored = stored_row(x.device.index, neurons, x.dtype)
    return stored or launches_for(kind, neurons, x.dtype)


def source(coefficient: Coefficient) -> Tensor | float:
    """What a kernel takes a coefficient from."""
    return coefficient.number if coefficient.tensor is None else coefficient.tensor


def kind(tensor: Tensor | None) -> int:
    """Of a coefficient `[c]` or `[lags, c]`, which is a number where there is no tensor."""
    if tensor is None:
        return NUMBER.value
    return (PER_CHANNEL if tensor.ndim > 0 and tensor.shape[-1] > 1 else VALUE).value


def reduce_channels(layout: Layout, per_neuron: Tensor, out: Tensor) -> None:
    """Sum `[M]` into one value, or into one per channel."""
    inner = layout.channel_inner if out.numel() > 1 else layout.neurons
    by_channel = per_neuron.view(-1, out.numel(), inner)
    out.copy_(by_channel.sum((0, 2), dtype=torch.float64).view(out.shape))
