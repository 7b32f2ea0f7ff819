"""Backend "triton": the kernels for GPUs, and in Triton's interpreter for CPU tensors.

The equations stand in ``neuron.py``, the kernels in ``kernels.py``, how they are cut into programs
in ``launches.py``, or as ``tuning.py`` measured it and ``stored.py`` kept it; here is the way from
tensors to a launch.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
from torch import Tensor

from snnkernels.backends.triton.kernels import neuron_bwd_kernel, neuron_fwd_kernel
from snnkernels.backends.triton.launches import (
    CHECKPOINT_EVERY,
    Launch,
    Row,
    compiler_options,
    gpu_class,
    launches_for,
)
from snnkernels.backends.triton.neuron import INTERPRETED
from snnkernels.backends.triton.stored import stored_row
from snnkernels.layout import Layout, Rows

__all__ = ["CHECKPOINT_EVERY", "neuron_backward", "neuron_forward", "why_unavailable"]

_OLDEST = (3, 6)  # Triton
NVIDIA = not INTERPRETED and torch.version.hip is None


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


def _in_rows(layout: Layout, block: int) -> bool:
    """Whether programs keep to one row each: they do where that leaves few lanes idle."""
    return layout.outer == 1 or -(-layout.inner // block) * block < 1.25 * layout.inner


def _run(
    kernel,
    layout: Layout,
    launch: Launch,
    rare: bool,
    walked: dict[str, Rows | None],
    tensors: dict[str, Tensor | None],
    arguments: dict,
    x: Tensor,
) -> None:
    """Launch one kernel.

    Args:
        kernel: the jit function.
        layout: of the call.
        launch: its parameters.
        rare: see `Launch.fitting`.
        walked: strides by the prefix of their names in the kernel; None: absent.
        tensors: pointers by name.
        arguments: numbers and compile-time options by name.
        x: says on which device.
    """
    walked = {name: rows or layout.out._replace(inner=1) for name, rows in walked.items()}
    sizes = [layout.inner, *(k for r in walked.values() for k in (r.outer, r.time))]
    align = 16 // x.element_size()
    aligned = not any(size % align for size in sizes) and _in_rows(layout, launch.block)
    launch = launch.fitting(aligned=aligned, rare=rare)
    align = align if aligned else 1
    wide = _in_rows(layout, launch.block)
    tiles = -(-layout.inner // launch.block)
    arguments = arguments | ({"U": launch.ahead} if "U" in kernel.arg_names else {})
    strides = {}
    for name, row in walked.items():
        strides[f"{name}_outer"], strides[f"{name}_time"] = row.outer // align, row.time // align
        if name != "out":
            strides[f"{name.upper()}_INNER"] = row.inner
    programs = layout.outer * tiles if wide else -(-layout.neurons // launch.block)
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
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
            **compiler_options(launch, NVIDIA and kernel is neuron_bwd_kernel),
        )


def _shared_arguments(options, numbers, decay, v_threshold) -> dict:
    return {
        "decay_number": numbers.decay,
        "threshold_number": numbers.v_threshold,
        "v_reset": numbers.v_reset,
        "period": float(options.refractory),
        "CHARGE": options.charge,
        "COMPARE": options.compare,
        "SPIKES": options.spikes,
        "WHEN": options.when,
        "RESET": options.reset,
        "REFRACTORY": options.refractory > 0,
        "DECAY_PER_CHANNEL": decay is not None and decay.numel() > 1,
        "THRESHOLD_PER_CHANNEL": v_threshold is not None and v_threshold.numel() > 1,
        "K": options.checkpoint_every,
    }


def _row(layout: Layout, x: Tensor) -> Row:
    if INTERPRETED:
        return launches_for("interpreter", layout.neurons, x.dtype)
    kind = gpu_class(x.device.index)
    stored = stored_row(x.device.index, layout.neurons, x.dtype)
    return stored or launches_for(kind, layout.neurons, x.dtype)


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
    launch: Launch | None = None,
) -> None:
    """Fill s, state_out, h and checkpoints; see ``csrc/snncore.h: NeuronForward``.

    ``launch`` is for measurements. Default: what `launches` or `stored` says.
    """
    launch = launch or _row(layout, x).forward
    _run(
        neuron_fwd_kernel,
        layout,
        launch,
        h is not None,
        {"x": layout.inputs[0], "out": layout.out},
        {
            "x": x,
            "v0": v,
            "wait0": refractory,
            "decay": decay,
            "v_threshold": v_threshold,
            "s": s,
            "h": h,
            "v_out": state_out[0],
            "wait_out": state_out[1] if options.refractory else None,
            "checkpoints": checkpoints,
        },
        _shared_arguments(options, numbers, decay, v_threshold),
        x,
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
    launch: Launch | None = None,
) -> None:
    """Fill the gradients that are not None; see ``csrc/snncore.h: NeuronBackward``.

    ``launch`` as for `neuron_forward`.
    """
    sums = [
        None if g is None else torch.empty(layout.neurons, dtype=torch.float32, device=x.device)
        for g in (ddecay, dv_threshold)
    ]
    _run(
        neuron_bwd_kernel,
        layout,
        launch or _row(layout, x).backward,
        dh is not None or options.refractory > 0 or any(g is not None for g in sums),
        dict(zip(("x", "ds", "dh", "out"), (*layout.inputs, layout.out), strict=True)),
        {
            "x": x,
            "v0": v,
            "wait0": refractory,
            "decay": decay,
            "v_threshold": v_threshold,
            "checkpoints": checkpoints,
            "ds": ds,
            "dv_out": dv,
            "dh": dh,
            "dx": dx,
            "dv0": dv0,
            "ddecay": sums[0],
            "dv_threshold": sums[1],
        },
        _shared_arguments(options, numbers, decay, v_threshold)
        | {
            "p": numbers.surrogate_p,
            "q": numbers.surrogate_q,
            "DETACH": bool(options.detach_reset),
            "SURROGATE": options.surrogate,
            "RECIPROCAL": NVIDIA,
        },
        x,
    )
    for gradient, per_neuron in zip((ddecay, dv_threshold), sums, strict=True):
        if gradient is not None:
            inner = layout.channel_inner if gradient.numel() > 1 else layout.neurons
            by_channel = per_neuron.view(-1, gradient.numel(), inner)
            gradient.copy_(by_channel.sum((0, 2), dtype=torch.float64).view(gradient.shape))
