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
from snnkernels.backends.triton.bntt import bntt_backward, bntt_forward, takes_bntt
from snnkernels.backends.triton.equations import INTERPRETED
from snnkernels.backends.triton.iir import MAX_ORDER, iir_backward, iir_forward
from snnkernels.backends.triton.launch import (
    NVIDIA,
    per_channel,
    reduce_channels,
    run,
    table_row,
)
from snnkernels.backends.triton.launch_table import CHECKPOINT_EVERY, Launch, rows_held
from snnkernels.backends.triton.neuron_bwd import neuron_bwd_kernel
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


def why_unavailable(device_type: str) -> str | None:
    """None where this backend runs on that kind of device, else the reason."""
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
    best = max(torch.cuda.get_device_capability(k) for k in range(torch.cuda.device_count()))
    return None if best >= (8, 0) else f"it needs compute capability 8.0 or newer, found {best}"


def _shared(call: Call) -> tuple[dict, dict]:
    """Pointers and arguments that both kernels have."""
    tensors = {
        "v0": call.state.v,
        "wait0": call.state.refractory,
        "trace0": call.state.trace,
        "synapse0": call.state.synapse,
        "decay": call.decay.tensor,
        "v_threshold": call.v_threshold.tensor,
        "gain": call.gain.tensor,
        "trace_decay": call.trace_decay.tensor,
        "alpha": call.alpha,
        "beta": call.beta,
    }
    arguments = {
        "decay_number": call.decay.number,
        "threshold_number": call.v_threshold.number,
        "gain_number": call.gain.number,
        "trace_number": call.trace_decay.number,
        "v_reset": call.v_reset,
        "period": float(call.refractory),
        "tolerance": call.tolerance,
        "shift": call.shift,
        "CHARGE": 0,
        "COMPARE": 0,
        "SPIKES": 0,
        "WHEN": 0,
        "RESET": call.reset,
        "REFRACTORY": call.refractory > 0,
        "GAIN": call.has_gain,
        "P": call.P,
        "Q": call.Q,
        "DECAY_PER_CHANNEL": call.decay.count > 1,
        "THRESHOLD_PER_CHANNEL": call.v_threshold.count > 1,
        "GAIN_PER_CHANNEL": call.gain.count > 1,
        "TRACE_PER_CHANNEL": call.trace_decay.count > 1,
        "FILTER_PER_CHANNEL": per_channel(call.beta),
        "K": call.checkpoint_every,
    }
    return tensors, arguments


def neuron_forward(
    layout: Layout, call: Call, x: Tensor, outputs: Outputs, *, launch: Launch | None = None
) -> None:
    """Fill the outputs; see ``csrc/snncore.h: NeuronForward``.

    ``launch`` is for measurements. Default: what `launch_tuned` or `launch_table` says.
    """
    tensors, arguments = _shared(call)
    run(
        neuron_fwd_kernel,
        layout,
        launch or table_row(layout.neurons, x).forward,
        {"x": layout.inputs[0], "out": layout.out},
        tensors
        | {
            "x": x,
            "s": outputs.s,
            "h": outputs.h,
            "v_out": outputs.v,
            "wait_out": outputs.refractory,
            "trace_out": outputs.trace,
            "synapse_out": outputs.synapse,
            "penalty_out": outputs.penalty,
            "checkpoints": outputs.checkpoints,
        },
        arguments,
        x,
        backward=False,
        held=rows_held(recorded=outputs.h is not None, synapse=call.beta is not None),
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
    tensors, arguments = _shared(call)
    sums = Sums(layout, call, gradients, x.device)
    run(
        neuron_bwd_kernel,
        layout,
        launch or table_row(layout.neurons, x).backward,
        dict(zip(("x", "ds", "dh", "out"), (*layout.inputs, layout.out), strict=True)),
        tensors
        | {
            "x": x,
            "checkpoints": checkpoints,
            "ds": arriving.s,
            "dv_out": arriving.v,
            "dtrace_out": arriving.trace,
            "dsynapse_out": arriving.synapse,
            "dpenalty": arriving.penalty,
            "dh": arriving.h,
            "dx": gradients.x,
            "dv0": gradients.v,
            "dtrace0": gradients.trace,
            "dsynapse0": gradients.synapse,
            "dcoefficients": sums.filter,
            "ddecay": sums.decay,
            "dv_threshold": sums.v_threshold,
            "dgain": sums.gain,
            "dtrace_decay": sums.trace_decay,
        },
        arguments
        | {
            "p": call.surrogate_p,
            "q": call.surrogate_q,
            "DETACH": bool(call.detach_reset),
            "SURROGATE": call.surrogate,
            "RECIPROCAL": NVIDIA,
        },
        x,
        backward=True,
        held=rows_held(
            learns=sums.wanted,
            recorded=arriving.h is not None,
            synapse=call.beta is not None,
            factors=call.has_trace or call.has_gain,
            other=call.has_trace or call.refractory > 0 or call.regularise > 0,
        ),
    )
    sums.reduce(partial(reduce_channels, layout))
