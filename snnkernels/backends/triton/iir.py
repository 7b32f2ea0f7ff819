"""The filter's way from tensors to a launch."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from snnkernels.backends.contract import Sums
from snnkernels.backends.triton.iir_kernels import iir_bwd_kernel, iir_fwd_kernel
from snnkernels.backends.triton.launch import per_channel, reduce_channels, run, table_row
from snnkernels.backends.triton.launch_table import CHECKPOINT_EVERY
from snnkernels.core.call import Arriving, Call, Gradients, Outputs
from snnkernels.core.strides import Layout

MAX_ORDER = 8  # of P and of Q: so many rows fit the registers


def held(P: int, Q: int, learns: bool) -> int:
    """``held`` of `Launch.fitting`, which a filter of these orders needs."""
    if learns:
        return 2 if max(P, Q) <= 2 else 3
    return 1 if max(P, Q) <= 2 else 2


def _shared(call: Call) -> tuple[dict, dict]:
    """Pointers and arguments that both kernels have."""
    tensors = {"state0": call.state.synapse, "alpha": call.alpha, "beta": call.beta}
    return tensors, {"P": call.P, "Q": call.Q, "FILTER_PER_CHANNEL": per_channel(call.beta)}


def iir_forward(layout: Layout, call: Call, x: Tensor, outputs: Outputs) -> None:
    """Fill the outputs; see ``csrc/snncore.h: IirForward``."""
    tensors, orders = _shared(call)
    run(
        iir_fwd_kernel,
        layout,
        table_row(layout.neurons, x).forward,
        {"x": layout.inputs[0], "out": layout.out},
        tensors
        | {
            "x": x,
            "f": outputs.s,
            "state_out": outputs.synapse,
            "checkpoints": outputs.checkpoints,
        },
        orders | {"K": call.checkpoint_every},
        x,
        backward=False,
        held=held(call.P, call.Q, False),
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
    tensors, orders = _shared(call)
    df = arriving.s
    sums = Sums(layout, call, gradients, df.device)
    learns = sums.wanted
    run(
        iir_bwd_kernel,
        layout,
        table_row(layout.neurons, df).backward,
        {"df": layout.inputs[1], "x": layout.inputs[0], "out": layout.out},
        tensors
        | {
            "df": df,
            "dstate": arriving.synapse,
            "x": x if learns else None,
            "state0": call.state.synapse if learns else None,
            "checkpoints": checkpoints if learns else None,
            "dx": gradients.x,
            "dstate0": gradients.synapse,
            "dcoefficients": sums.filter,
        },
        orders | {"K": call.checkpoint_every or CHECKPOINT_EVERY},
        df,
        backward=True,
        held=held(call.P, call.Q, learns),
    )
    sums.reduce(partial(reduce_channels, layout))
