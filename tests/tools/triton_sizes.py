"""How often the Triton kernels compile over calls that differ in sizes and strides only, as JSON.

``python -m tests.tools.triton_sizes`` runs in a process without TRITON_INTERPRET. It prints, for
each kernel and dtype, the compilations, and how many of them differ in a compile-time argument.
"""

from __future__ import annotations

import json
from itertools import product

import torch

from snnkernels.backends import triton as kernels
from snnkernels.backends.triton import bntt
from snnkernels.core.call import TRACE, Arriving, Call, Coefficient, Gradients, Outputs
from snnkernels.core.state import State
from snnkernels.core.strides import Layout, Rows
from tests.tools.triton_stub import no_gpu

STEPS = (1, 2, 7, 16, 50, 64, 1000, (1 << 31) - 64)
# O, I: one row, few rows, rows shorter than a program; multiples of 16 and not.
PLACES = (
    (1, 4096),
    (1, 1 << 34),
    (1, 1),
    (1, 16),
    (1, 35),
    (3, 61),
    (2, 4096),
    (1 << 33, 5),
    (700, 3),
)


def layouts(walked: int) -> list[Layout]:
    """Sizes and strides of all kinds, for so many inputs with neurons side by side."""
    found = []
    for steps, (outer, inner), stretch in product(STEPS, PLACES, (1, 3, 1 << 20)):
        rows = Rows(outer=inner, time=outer * inner * stretch, inner=1)
        out = Rows(inner, outer * inner, 1)
        channels = inner if inner % 2 else inner // 2
        found.append(Layout(steps, outer, inner, channels, stretch, out, (rows,) * walked))
    return found


def neuron(dtype: torch.dtype) -> None:
    """The neuron with all its parts, forward and backward."""
    row, x = torch.zeros(16), torch.zeros(16, dtype=dtype)
    lags, factor = torch.zeros(2, 4), Coefficient(torch.zeros(4))
    call = Call(*(factor,) * 4, lags, lags, State(*(row,) * 4))
    call = call._replace(reset=TRACE, refractory=2, checkpoint_every=16, regularise=1)
    for layout in layouts(1):
        kernels.neuron_forward(layout, call, x, Outputs(x, *(row,) * 7))
    for layout in layouts(3):
        gradients = Gradients(x=x, v=row, synapse=row, trace=row)
        kernels.neuron_backward(layout, call, x, row, Arriving(x, *(row,) * 5), gradients)


def iir(dtype: torch.dtype) -> None:
    """The filter, forward and backward."""
    row, x, lags = torch.zeros(16), torch.zeros(16, dtype=dtype), torch.zeros(2, 4)
    call = Call(alpha=lags, beta=lags, state=State(synapse=row), checkpoint_every=16)
    for layout in layouts(1):
        kernels.iir_forward(layout, call, x, Outputs(x, *(row,) * 7))
    for layout in layouts(2):
        gradients = Gradients(x=x, synapse=row)
        kernels.iir_backward(layout, call, x, row, Arriving(s=x, synapse=row), gradients)


def batch_norm(dtype: torch.dtype) -> None:
    """Batch norm through time, forward and backward; channels of one tile's width."""
    for steps, batch, side, channels in product((1, 3, 16), (1, 7, 16), (1, 5), (48, 64)):
        x = torch.zeros(steps, batch, side, side, channels, dtype=dtype).movedim(-1, 2)
        row = torch.zeros(steps, channels)
        bntt.bntt_forward(x, row, 1e-5, out=x, mean=row, rstd=row)
        bntt.bntt_backward(x, x, row, row, row, dx=x, dweight=row)


def count() -> dict[str, list[int]]:
    """By kernel and dtype: compilations, and how many of them differ in what is fixed in them."""
    found = {}
    for call, dtype in product((neuron, iir, batch_norm), (torch.float32, torch.bfloat16)):
        with no_gpu() as compiled:
            call(dtype)
        for name in sorted({name for name, _ in compiled}):
            fixed = [str(constants) for other, constants in compiled if other == name]
            found[f"{name}-{str(dtype)[6:]}"] = [len(fixed), len(set(fixed))]
    return found


if __name__ == "__main__":
    print(json.dumps(count()))
