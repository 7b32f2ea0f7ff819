"""The filter's way from tensors to a launch."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from snnkernels.backends.contract import Sums
from snnkernels.backends.triton.filter import Order, Taps
from snnkernels.backends.triton.iir_kernels import iir_bwd_kernel, iir_fwd_kernel
from snnkernels.backends.triton.launch import kind, reduce_channels, run, table_row
from snnkernels.backends.triton.launch_table import CHECKPOINT_EVERY, filter_limit
from snnkernels.core.call import Arriving, Call, Gradients, Outputs
from snnkernels.core.strides import Layout

MAX_ORDER = 8  # of P and of Q: what fits the registers


def order(call: Call) -> Order:
    """Of the call's filter, if it has one."""
    return Order() if call.beta is None else Order(call.P, call.Q, kind(call.beta))


def iir_forward(layout: Layout, call: Call, x: Tensor, outputs: Outputs) -> None:
    """Fill the outputs; see ``csrc/snncore.h: IirForward``."""
    run(
        iir_fwd_kernel,
        layout,
        table_row(layout.neurons, x).forward,
        call.checkpoint_every,
        {"x": layout.inputs[0], "out": layout.out},
        {
            "x": x,
            "start": call.state.synapse,
            "taps": Taps(call.alpha, call.beta),
            "out": outputs,
            "ORDER": order(call),
        },
        x,
        backward=False,
        limit=filter_limit(call.P, call.Q, backward=False),
    )


def iir_backward(
    layout: Layout,
    call: Call,
    x: Tensor | None,
    checkpoints: Tensor | None,
    arriving: Arriving,
    gradients: Gradients,
) -> None:
    """Fill the gradients that are wanted; see ``csrc/snncore.h: IirBackward``."""
    df = arriving.s
    sums = Sums(layout, call, gradients, df.device)
    learns = sums.wanted
    run(
        iir_bwd_kernel,
        layout,
        table_row(layout.neurons, df).backward,
        call.checkpoint_every or CHECKPOINT_EVERY,
        {"df": layout.inputs[1], "x": layout.inputs[0], "out": layout.out},
        {
            "df": df,
            "x": x if learns else None,
            "start": call.state.synapse if learns else None,
            "taps": Taps(call.alpha, call.beta),
            "checkpoints": checkpoints if learns else None,
            "dstate": arriving.synapse,
            "dx": gradients.x,
            "dstart": gradients.synapse,
            "dtaps": sums.filter,
            "ORDER": order(call),
        },
        df,
        backward=True,
        limit=filter_limit(call.P, call.Q, backward=True, learns=learns),
    )
    sums.reduce(partial(reduce_channels, layout))
