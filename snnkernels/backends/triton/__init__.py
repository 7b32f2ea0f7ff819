"""Backend "triton": the kernels for GPUs, and in Triton's interpreter for CPU tensors.

The equations stand in ``equations.py``, the filter's bookkeeping in ``filter.py``; the kernels are
``neuron_fwd.py``, ``neuron_bwd.py`` and ``iir_kernels.py``. How they are cut into programs stands
in ``launch_table.py``, or as `python -m snnkernels tune` measured it in ``launch_tuned.py``. Here
and in ``iir.py`` is the way from tensors to a launch; ``launch.py`` makes it. ``bntt.py`` is batch
norm through time, which has no time loop, by itself.
"""

from __future__ import annotations

import torch
import triton

from snnkernels.backends.triton.bntt import bntt_backward, bntt_forward, takes_bntt
from snnkernels.backends.triton.equations import INTERPRETED
from snnkernels.backends.triton.iir import MAX_ORDER, iir_backward, iir_forward
from snnkernels.backends.triton.launch import (
    NVIDIA,
    empty_sums,
    per_channel,
    reduce_channels,
    reduce_filter,
    run,
    table_row,
)
from snnkernels.backends.triton.launch_table import CHECKPOINT_EVERY, Launch, rows_held
from snnkernels.backends.triton.neuron_bwd import neuron_bwd_kernel
from snnkernels.backends.triton.neuron_fwd import neuron_fwd_kernel
from snnkernels.core.call import RESETS, General

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
_PLAIN = General()


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


def _shared(options, numbers, v, refractory, decay, v_threshold, general) -> tuple[dict, dict]:
    """Pointers and arguments that both kernels have."""
    tensors = {
        "v0": v,
        "wait0": refractory,
        "trace0": general.trace,
        "synapse0": general.synapse,
        "decay": decay,
        "v_threshold": v_threshold,
        "gain": general.gain,
        "trace_decay": general.trace_decay,
        "alpha": general.alpha,
        "beta": general.beta,
    }
    arguments = {
        "decay_number": numbers.decay,
        "threshold_number": numbers.v_threshold,
        "gain_number": numbers.gain,
        "trace_number": numbers.trace_decay,
        "v_reset": numbers.v_reset,
        "period": float(options.refractory),
        "tolerance": numbers.tolerance,
        "shift": numbers.shift,
        "CHARGE": options.charge,
        "COMPARE": options.compare,
        "SPIKES": options.spikes,
        "WHEN": options.when,
        "RESET": options.reset,
        "REFRACTORY": options.refractory > 0,
        "GAIN": general.gain is not None or numbers.gain != 1.0,
        "P": general.outputs,
        "Q": general.synapse_rows - general.outputs,
        "DECAY_PER_CHANNEL": per_channel(decay),
        "THRESHOLD_PER_CHANNEL": per_channel(v_threshold),
        "GAIN_PER_CHANNEL": per_channel(general.gain),
        "TRACE_PER_CHANNEL": per_channel(general.trace_decay),
        "FILTER_PER_CHANNEL": per_channel(general.beta),
        "K": options.checkpoint_every,
    }
    return tensors, arguments


def neuron_forward(
    layout,
    options,
    numbers,
    x,
    v,
    refractory,
    decay,
    v_threshold,
    *,
    s,
    state_out,
    h,
    checkpoints,
    general=_PLAIN,
    launch: Launch | None = None,
) -> None:
    """Fill s, state_out, h and checkpoints; see ``csrc/snncore.h: NeuronForward``.

    ``launch`` is for measurements. Default: what `launches` or `stored` says.
    """
    tensors, arguments = _shared(options, numbers, v, refractory, decay, v_threshold, general)
    rows = options.state_rows
    traced = options.reset == RESETS.index("trace")
    run(
        neuron_fwd_kernel,
        layout,
        launch or table_row(layout.neurons, x).forward,
        {"x": layout.inputs[0], "out": layout.out},
        tensors
        | {
            "x": x,
            "s": s,
            "h": h,
            "v_out": state_out[0],
            "wait_out": state_out[1] if options.refractory else None,
            "trace_out": state_out[rows - 1] if traced else None,
            "synapse_out": None if general.beta is None else state_out[rows:],
            "penalty_out": state_out[-1] if options.regularise else None,
            "checkpoints": checkpoints,
        },
        arguments,
        x,
        backward=False,
        held=rows_held(recorded=h is not None, synapse=general.beta is not None),
    )


def neuron_backward(
    layout,
    options,
    numbers,
    x,
    v,
    refractory,
    decay,
    v_threshold,
    checkpoints,
    ds,
    dv,
    dh,
    *,
    dx,
    dv0,
    ddecay,
    dv_threshold,
    general=_PLAIN,
    general_out=(None,) * 6,
    launch: Launch | None = None,
) -> None:
    """Fill the gradients that are not None; see ``csrc/snncore.h: NeuronBackward``.

    ``launch`` as for `neuron_forward`.
    """
    dgain, dtrace_decay, dalpha, dbeta, dtrace0, dsynapse0 = general_out
    tensors, arguments = _shared(options, numbers, v, refractory, decay, v_threshold, general)
    wanted = {
        "ddecay": ddecay,
        "dv_threshold": dv_threshold,
        "dgain": dgain,
        "dtrace_decay": dtrace_decay,
    }
    sums = {name: None if g is None else empty_sums(layout, x) for name, g in wanted.items()}
    filter_sums = None
    if dalpha is not None or dbeta is not None:
        filter_sums = empty_sums(layout, x, general.outputs + general.beta.shape[0])
    traced = options.reset == RESETS.index("trace")
    learns = filter_sums is not None or any(g is not None for g in wanted.values())
    run(
        neuron_bwd_kernel,
        layout,
        launch or table_row(layout.neurons, x).backward,
        dict(zip(("x", "ds", "dh", "out"), (*layout.inputs, layout.out), strict=True)),
        tensors
        | {
            "x": x,
            "checkpoints": checkpoints,
            "ds": ds,
            "dv_out": dv,
            "dtrace_out": general.dtrace,
            "dsynapse_out": general.dsynapse,
            "dpenalty": general.dpenalty,
            "dh": dh,
            "dx": dx,
            "dv0": dv0,
            "dtrace0": dtrace0,
            "dsynapse0": dsynapse0,
            "dcoefficients": filter_sums,
        }
        | sums,
        arguments
        | {
            "p": numbers.surrogate_p,
            "q": numbers.surrogate_q,
            "DETACH": bool(options.detach_reset),
            "SURROGATE": options.surrogate,
            "RECIPROCAL": NVIDIA,
        },
        x,
        backward=True,
        held=rows_held(
            learns=learns,
            recorded=dh is not None,
            synapse=general.beta is not None,
            factors=traced or arguments["GAIN"],
            other=traced or options.refractory > 0 or options.regularise > 0,
        ),
    )
    for name, gradient in wanted.items():
        if gradient is not None:
            reduce_channels(layout, sums[name], gradient)
    reduce_filter(layout, filter_sums, dalpha, dbeta)
