"""Backend "triton": the kernels for GPUs, and in Triton's interpreter for CPU tensors.

The equations stand in ``equations.py``, the filter's bookkeeping in ``filter.py``; the kernels are
``neuron_fwd.py``, ``neuron_bwd.py`` and ``iir_kernels.py``. How they are cut into programs stands
in ``launch_table.py``, or as `python -m snnkernels tune` measured it in ``launch_tuned.py``. Here
and in ``iir.py`` is the way from tensors to a launch; ``launch.py`` makes it. ``bntt.py`` is batch
norm through time, which has no time loop, by itself.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
from torch import Tensor

from snnkernels.backends.contract import Sums
from snnkernels.backends.gpu import capability
from snnkernels.backends.triton.bntt import bntt_backward, bntt_forward, takes_bntt
from snnkernels.backends.triton.equations import INTERPRETED, Neuron, Policy
from snnkernels.backends.triton.filter import Taps
from snnkernels.backends.triton.iir import MAX_ORDER, iir_backward, iir_forward, order
from snnkernels.backends.triton.launch import (
    NVIDIA,
    kind,
    reduce_channels,
    run,
    source,
    table_row,
)
from snnkernels.backends.triton.launch_table import (
    CHECKPOINT_EVERY,
    Launch,
    backward_limit,
    forward_limit,
)
from snnkernels.backends.triton.neuron_bwd import Wanted, neuron_bwd_kernel
from snnkernels.backends.triton.neuron_fwd import neuron_fwd_kernel
from snnkernels.core.call import Arriving, Call, Gradients, Outputs
from snnkernels.core.strides import Layout

__all__ = [
    "CHECKPOINT_EVERY",
    "MAX_ORDER",
    "OPS",
    "bntt_backward",
    "bntt_forward",
    "iir_backward",
    "iir_forward",
    "neuron_backward",
    "neuron_forward",
    "takes_bntt",
    "why_unavailable",
]

OPS = ("neuron", "general", "regulariser", "iir", "bntt")

_OLDEST = (3, 6)  # Triton


def why_unavailable(device_type: str, index: int | None = None) -> str | None:
    """None where this backend runs on a device, by default on any of its kind, else the reason."""
    version = tuple(map(int, triton.__version__.split(".")[:2]))
    if version < _OLDEST:
        return f"it needs triton {'.'.join(map(str, _OLDEST))} or newer, found {triton.__version__}"
    if INTERPRETED:
        return None if device_type == "cpu" else "TRITON_INTERPRET is set: CPU tensors only"
    if device_type == "cpu":
        return (
            "it runs on GPUs; on CPU tensors only in Triton's interpreter, which the environment "
            "variable TRITON_INTERPRET=1 asks for before triton is imported"
        )
    if device_type != "cuda":
        return "it runs on CUDA and ROCm devices only"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if torch.version.hip is not None:
        return None
    found = capability(index)
    return None if found >= (8, 0) else f"it needs compute capability 8.0 or newer, found {found}"


def _shared(call: Call) -> dict:
    """Arguments that both kernels have."""
    coefficients = (call.decay, call.v_threshold, call.gain, call.trace_decay)
    return {
        "start": call.state,
        "neuron": Neuron(
            *map(source, coefficients),
            float(call.refractory),
            call.numbers,
        ),
        "taps": Taps(call.alpha, call.beta),
        "POLICY": Policy(
            reset=call.reset,
            refractory=call.refractory > 0,
            gain=call.has_gain,
            regularise=call.regularise > 0,
            rows=call.checkpoint_rows - call.P,
            kinds=tuple(kind(c.tensor) for c in coefficients),
        ),
        "ORDER": order(call),
    }


def neuron_forward(
    layout: Layout, call: Call, x: Tensor, outputs: Outputs, *, launch: Launch | None = None
) -> None:
    """Fill the outputs; see ``csrc/snncore.h: NeuronForward``.

    ``launch`` is for measurements. Default: what `launch_tuned` or `launch_table` says.
    """
    run(
        neuron_fwd_kernel,
        layout,
        launch or table_row(layout.neurons, x).forward,
        call.checkpoint_every,
        {"x": layout.inputs[0], "out": layout.out},
        _shared(call) | {"x": x, "out": outputs},
        x,
        backward=False,
        limit=forward_limit(recorded=outputs.h is not None, synapse=call.beta is not None),
    )


def neuron_backward(
    layout: Layout,
    call: Call,
    x: Tensor,
    checkpoints: Tensor,
    arriving: Arriving,
    gradients: Gradients,
    *,
    launch: Launch | None = None,
) -> None:
    """Fill the gradients that are wanted; see ``csrc/snncore.h: NeuronBackward``.

    ``launch`` as for `neuron_forward`.
    """
    arguments, sums = _shared(call), Sums(layout, call, gradients, x.device)
    policy = arguments["POLICY"]._replace(
        detach=bool(call.detach_reset), surrogate=call.surrogate, reciprocal=NVIDIA
    )
    wanted = Wanted(
        gradients.x,
        gradients.v,
        gradients.trace,
        gradients.synapse,
        sums.decay,
        sums.v_threshold,
        sums.gain,
        sums.trace_decay,
        sums.filter,
    )
    run(
        neuron_bwd_kernel,
        layout,
        launch or table_row(layout.neurons, x).backward,
        call.checkpoint_every,
        dict(zip(("x", "ds", "dh", "out"), (*layout.inputs, layout.out), strict=True)),
        arguments
        | {
            "x": x,
            "checkpoints": checkpoints,
            "arriving": arriving,
            "wanted": wanted,
            "POLICY": policy,
        },
        x,
        backward=True,
        limit=backward_limit(
            learns=sums.wanted,
            recorded=arriving.h is not None,
            synapse=call.beta is not None,
            factors=call.has_trace or call.has_gain,
            other=call.has_trace or call.refractory > 0 or call.regularise > 0,
        ),
    )
    sums.reduce(partial(reduce_channels, layout))
