"""Backend "cuda": the CUDA C++ kernels of ``csrc/cuda/``, on NVIDIA GPUs from sm_80 on.

There are two ways to the same kernels: ``snnkernels._cuda``, where the package was built with nvcc
at hand, or the package's own sources, compiled at run time through CuPy's NVRTC. `way` says which.
No call allocates on the device outside PyTorch's allocator, synchronises, or leaves the current
stream, so calls can be captured in CUDA graphs.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from snnkernels.backends.cuda import launch as cuda_launch
from snnkernels.backends.cuda.launch import (
    CHECKPOINT_EVERY,
    MAX_ORDER,
    pack_call,
    rows_of,
    shape_of,
)
from snnkernels.core.call import General, Numbers, Options, is_general

__all__ = [
    "CHECKPOINT_EVERY",
    "MAX_ORDER",
    "iir_backward",
    "iir_forward",
    "neuron_backward",
    "neuron_forward",
    "way",
    "why_unavailable",
]

OPS = ("neuron", "general", "regulariser", "iir")

_OLDEST = (8, 0)  # compute capability: cp.async
_PLAIN = General()


class Target(NamedTuple):
    """Where a call runs.

    Attributes:
        launch: ``launch(kernel, blocks, threads, arguments, stream)``.
        multiprocessors: of the GPU.
        stream: its handle.
        guard: a context in which the GPU is the current one.
    """

    launch: object
    multiprocessors: int
    stream: int
    guard: object


@lru_cache
def _way() -> tuple[str | None, object, str]:
    """The way that is taken, its module, and why the ways before it are not."""
    reasons = []
    for name, module in (("ahead of time", "aot"), ("run time", "jit")):
        module = import_module(f"snnkernels.backends.cuda.{module}")
        reason = module.why_unavailable()
        if reason is None:
            return name, module, "; ".join(reasons)
        reasons.append(f"{name}: {reason}")
    return None, None, "; ".join(reasons)


def way() -> str | None:
    """How the kernels come to be: "ahead of time", "run time", or None where neither way is there.

    Returns:
        "ahead of time": they were compiled by nvcc when the package was built. "run time": NVRTC
        compiles each one when it is first needed, and a cache on disk keeps it.
    """
    return _way()[0]


def why_no_way() -> str:
    """Why the kernels are to be had in neither way; empty where the first one is there."""
    return _way()[2]


def why_unavailable(device_type: str) -> str | None:
    """None where this backend runs on that kind of device, else the reason."""
    if device_type != "cuda":
        return "it runs on CUDA tensors only"
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU, or no driver that is new enough for it"
    capability = min(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))
    if capability < _OLDEST:
        return (
            f"the GPU has compute capability {capability[0]}.{capability[1]}, the kernels need 8.0 "
            "(Ampere) or newer; backends 'triton' and 'torch' may still work"
        )
    if way() is None:
        return f"its kernels are to be had in neither way ({why_no_way()})"
    return None


def _target(x: Tensor) -> Target:
    index = x.device.index
    same = index == torch.cuda.current_device()
    return Target(
        _way()[1].launch,
        _multiprocessors(index),
        torch.cuda.current_stream(index).cuda_stream,
        nullcontext() if same else torch.cuda.device(index),
    )


@lru_cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


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
) -> None:
    """Fill s, state_out, h and checkpoints; see ``csrc/snncore.h: NeuronForward``."""
    target = _target(x)
    in_x, out = layout.inputs[0], layout.out
    sequences = [(x, in_x), (s, out)] + ([] if h is None else [(h, out)])
    shape = shape_of(
        layout,
        x.dtype,
        sequences,
        [v, refractory, state_out, checkpoints, *general[4:8]],
        _level(options, numbers, general, h, decay, v_threshold),
        target.multiprocessors,
    )
    kernel = cuda_launch.forward(shape, options.reset)
    arguments = pack_call(
        layout,
        options,
        numbers,
        decay,
        v_threshold,
        general,
        x=rows_of(x, in_x),
        s=rows_of(s, out),
        h=rows_of(h, out),
        v0=v,
        wait0=refractory,
        state=state_out,
        checkpoints=checkpoints,
    )
    with target.guard:
        target.launch(*kernel, arguments, target.stream)


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
) -> None:
    """Fill the gradients that are not None; see ``csrc/snncore.h: NeuronBackward``."""
    target = _target(x)
    in_x, in_ds, in_dh = layout.inputs
    dgain, dtrace_decay, dalpha, dbeta, dtrace0, dsynapse0 = general_out
    wanted = (ddecay, dv_threshold, dgain, dtrace_decay)
    sums = [None if g is None else torch.empty(layout.neurons, device=x.device) for g in wanted]
    filter_sums = None
    if dalpha is not None or dbeta is not None:
        filter_sums = torch.empty(general.synapse_rows + 1, layout.neurons, device=x.device)
    level = _level(options, numbers, general, dh, decay, v_threshold)
    if level == "plain" and any(g is not None for g in wanted):
        level = "rare"
    sequences = [(x, in_x), (ds, in_ds), (dx, layout.out)] + ([] if dh is None else [(dh, in_dh)])
    states = [v, refractory, dv, dv0, checkpoints, *general[4:8], dtrace0, dsynapse0]
    shape = shape_of(layout, x.dtype, sequences, states, level, target.multiprocessors)
    kernel = cuda_launch.backward(shape, options.reset, bool(options.detach_reset))
    arguments = pack_call(
        layout,
        options,
        numbers,
        decay,
        v_threshold,
        general,
        x=rows_of(x, in_x),
        ds=rows_of(ds, in_ds),
        dh=rows_of(dh, in_dh),
        dx=rows_of(dx, layout.out),
        v0=v,
        wait0=refractory,
        dv=dv,
        checkpoints=checkpoints,
        dv0=dv0,
        ddecay=sums[0],
        dtheta=sums[1],
        dtrace0=dtrace0,
        dsynapse0=dsynapse0,
        dgain=sums[2],
        dtrace_decay=sums[3],
        dcoefficients=filter_sums,
    )
    with target.guard:
        target.launch(*kernel, arguments, target.stream)
        for gradient, per_neuron in zip(wanted, sums, strict=True):
            if gradient is not None:
                _reduce(target, layout, per_neuron, gradient)
        _reduce_filter(target, layout, filter_sums, dalpha, dbeta)


def iir_forward(
    layout, x, state, alpha, beta, *, f, state_out, checkpoint_every, checkpoints
) -> None:
    """Fill f, state_out and checkpoints; see ``csrc/snncore.h: IirForward``."""
    target = _target(x)
    in_x, out = layout.inputs[0], layout.out
    sequences, states = [(x, in_x), (f, out)], [state, state_out, checkpoints]
    shape = shape_of(layout, x.dtype, sequences, states, "general", target.multiprocessors)
    kernel = cuda_launch.iir_forward(shape, _order(alpha, beta))
    arguments = pack_call(
        layout,
        Options(checkpoint_every=checkpoint_every),
        Numbers(),
        None,
        None,
        General(alpha=alpha, beta=beta, synapse=state),
        x=rows_of(x, in_x),
        s=rows_of(f, out),
        state=state_out,
        checkpoints=checkpoints,
    )
    with target.guard:
        target.launch(*kernel, arguments, target.stream)


def iir_backward(
    layout,
    df,
    dstate,
    alpha,
    beta,
    x,
    state,
    checkpoint_every,
    checkpoints,
    *,
    dx,
    dstate0,
    dalpha,
    dbeta,
) -> None:
    """Fill the gradients that are not None; see ``csrc/snncore.h: IirBackward``."""
    target = _target(df)
    (in_df, in_x), out = layout.inputs, layout.out
    sums = None
    if dalpha is not None:
        sums = torch.empty(len(alpha) + len(beta), layout.neurons, device=df.device)
    sequences, states = [(df, in_df), (dx, out)], [dstate, dstate0, state, checkpoints]
    shape = shape_of(layout, df.dtype, sequences, states, "general", target.multiprocessors)
    kernel = cuda_launch.iir_backward(shape, _order(alpha, beta), sums is not None)
    arguments = pack_call(
        layout,
        Options(checkpoint_every=checkpoint_every),
        Numbers(),
        None,
        None,
        General(alpha=alpha, beta=beta, synapse=state, dsynapse=dstate),
        x=rows_of(x, in_x),
        ds=rows_of(df, in_df),
        dx=rows_of(dx, out),
        checkpoints=checkpoints,
        dsynapse0=dstate0,
        dcoefficients=sums,
    )
    with target.guard:
        target.launch(*kernel, arguments, target.stream)
        _reduce_filter(target, layout, sums, dalpha, dbeta)


def _order(alpha: Tensor, beta: Tensor) -> int:
    return max(len(alpha), len(beta) - 1)


def _level(options, numbers, general: General, recorded: Tensor | None, *coefficients) -> str:
    """Which options a kernel must have; see ``csrc/cuda/rows.cuh: Level``."""
    if is_general(options, numbers, general):
        return "general"
    per_channel = any(c is not None and c.numel() > 1 for c in coefficients)
    return "rare" if options.refractory or recorded is not None or per_channel else "plain"


def _reduce(target: Target, layout, per_neuron: Tensor, gradient: Tensor) -> None:
    channels = gradient.numel()
    inner = layout.channel_inner if channels > 1 else layout.neurons
    each, all_parts, parts = cuda_launch.reduction(layout.neurons, channels)
    partial = torch.empty(channels * parts, dtype=torch.float64, device=per_neuron.device)
    arguments = cuda_launch.pack_reduction(per_neuron, partial, gradient, inner, parts)
    target.launch(*each, arguments, target.stream)
    target.launch(*all_parts, arguments, target.stream)


def _reduce_filter(target: Target, layout, sums: Tensor | None, dalpha, dbeta) -> None:
    """Sums `[P + Q + 1, M]` into the gradients of a filter's coefficients that are wanted."""
    if sums is None:
        return
    if dalpha is not None:
        for out, per_neuron in zip(dalpha, sums, strict=False):
            _reduce(target, layout, per_neuron, out)
    if dbeta is not None:
        for out, per_neuron in zip(dbeta, sums[-dbeta.shape[0] :], strict=True):
            _reduce(target, layout, per_neuron, out)
