"""Backend "cuda": the CUDA C++ kernels of ``csrc/kernels.cuh``, on NVIDIA GPUs from sm_80 on.

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

from snnkernels.backends import cuda_launch
from snnkernels.backends.cuda_launch import CHECKPOINT_EVERY, pack_call, rows_of, shape_of

__all__ = ["CHECKPOINT_EVERY", "neuron_backward", "neuron_forward", "way", "why_unavailable"]

_OLDEST = (8, 0)  # compute capability: cp.async


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
    for name, module in (("ahead of time", "cuda_aot"), ("run time", "cuda_jit")):
        module = import_module(f"snnkernels.backends.{module}")
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
        return f"its kernels are to be had in neither way ({_way()[2]})"
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
    layout, options, numbers, x, v, refractory, decay, v_threshold, *, s, state_out, h, checkpoints
) -> None:
    """Fill s, state_out, h and checkpoints; see ``csrc/snncore.h: NeuronForward``."""
    target = _target(x)
    in_x, out = layout.inputs[0], layout.out
    wait = state_out[1] if options.refractory else None
    rare = bool(options.refractory) or h is not None or _per_channel(decay, v_threshold)
    sequences = [(x, in_x), (s, out)] + ([] if h is None else [(h, out)])
    shape = shape_of(
        layout,
        x.dtype,
        sequences,
        [v, refractory, state_out, checkpoints],
        rare,
        target.multiprocessors,
    )
    kernel = cuda_launch.forward(shape, options.reset)
    arguments = pack_call(
        layout,
        options,
        numbers,
        decay,
        v_threshold,
        x=rows_of(x, in_x),
        s=rows_of(s, out),
        h=rows_of(h, out),
        v0=v,
        wait0=refractory,
        v=state_out,
        wait=wait,
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
) -> None:
    """Fill the gradients that are not None; see ``csrc/snncore.h: NeuronBackward``."""
    target = _target(x)
    in_x, in_ds, in_dh = layout.inputs
    sums = [
        None if g is None else torch.empty(layout.neurons, device=x.device)
        for g in (ddecay, dv_threshold)
    ]
    rare = (
        bool(options.refractory)
        or dh is not None
        or ddecay is not None
        or dv_threshold is not None
        or _per_channel(decay, v_threshold)
    )
    sequences = [(x, in_x), (ds, in_ds), (dx, layout.out)] + ([] if dh is None else [(dh, in_dh)])
    states = [v, refractory, dv, dv0, checkpoints]
    shape = shape_of(layout, x.dtype, sequences, states, rare, target.multiprocessors)
    kernel = cuda_launch.backward(shape, options.reset, bool(options.detach_reset))
    arguments = pack_call(
        layout,
        options,
        numbers,
        decay,
        v_threshold,
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
    )
    with target.guard:
        target.launch(*kernel, arguments, target.stream)
        for gradient, per_neuron in zip((ddecay, dv_threshold), sums, strict=True):
            if gradient is not None:
                _reduce(target, layout, per_neuron, gradient)


def _reduce(target: Target, layout, per_neuron: Tensor, gradient: Tensor) -> None:
    channels = gradient.numel()
    inner = layout.channel_inner if channels > 1 else layout.neurons
    each, all_parts, parts = cuda_launch.reduction(layout.neurons, channels)
    partial = torch.empty(channels * parts, dtype=torch.float64, device=per_neuron.device)
    arguments = cuda_launch.pack_reduction(per_neuron, partial, gradient, inner, parts)
    target.launch(*each, arguments, target.stream)
    target.launch(*all_parts, arguments, target.stream)


def _per_channel(*coefficients: Tensor | None) -> bool:
    return any(c is not None and c.numel() > 1 for c in coefficients)
