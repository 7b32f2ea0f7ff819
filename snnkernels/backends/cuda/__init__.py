"""Backend "cuda": the CUDA C++ kernels of ``csrc/cuda/``, on NVIDIA GPUs from sm_80 on.

There are two ways to the same kernels: ``snnkernels._cuda``, where the package was built with nvcc
at hand, or the package's own sources, compiled at run time through CuPy's NVRTC. `way` says which.
No call allocates on the device outside PyTorch's allocator, synchronises, or leaves the current
stream, so calls can be captured in CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from snnkernels.backends.contract import Sums
from snnkernels.backends.cuda import launch as cuda_launch
from snnkernels.backends.cuda.launch import CHECKPOINT_EVERY, MAX_ORDER, Launch, Shape
from snnkernels.backends.gpu import capability
from snnkernels.core.call import Arriving, Call, Gradients, Outputs
from snnkernels.core.strides import Layout, Rows

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
    """Why neither ahead-of-time nor just-in-time kernels are there; empty with the former."""
    return _way()[2]


def why_unavailable(device_type: str, index: int | None = None) -> str | None:
    """None where this backend runs on a device, by default on any of its kind, else the reason."""
    if device_type != "cuda":
        return "it runs on CUDA tensors only"
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU, or no driver that is new enough for it"
    found = capability(index)
    if found < _OLDEST:
        return (
            f"the GPU has compute capability {found[0]}.{found[1]}, the kernels need 8.0 "
            "(Ampere) or newer; backends 'triton' and 'torch' may still work"
        )
    if way() is None:
        return f"it has no kernels, nor a way to build them ({why_no_way()})"
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


def neuron_forward(layout: Layout, call: Call, x: Tensor, outputs: Outputs) -> None:
    """Fill the outputs; see ``csrc/snncore.h: NeuronForward``."""
    level = _level(call, outputs.h is not None)
    kernel = partial(cuda_launch.forward, reset=call.reset)
    _forward(kernel, level, layout, call, x, outputs)


def iir_forward(layout: Layout, call: Call, x: Tensor, outputs: Outputs) -> None:
    """Fill the outputs; see ``csrc/snncore.h: IirForward``."""
    kernel = partial(cuda_launch.iir_forward, order=max(call.P, call.Q))
    _forward(kernel, "general", layout, call, x, outputs)


def neuron_backward(
    layout: Layout,
    call: Call,
    x: Tensor,
    checkpoints: Tensor,
    arriving: Arriving,
    gradients: Gradients,
) -> None:
    """Fill the gradients that are wanted; see ``csrc/snncore.h: NeuronBackward``."""
    sums = Sums(layout, call, gradients, x.device)
    level = _level(call, arriving.h is not None or sums.wanted)
    kernel = partial(cuda_launch.backward, reset=call.reset, detach=bool(call.detach_reset))
    _backward(kernel, level, layout, call, x, checkpoints, arriving, gradients, sums)


def iir_backward(
    layout: Layout,
    call: Call,
    x: Tensor | None,
    checkpoints: Tensor | None,
    arriving: Arriving,
    gradients: Gradients,
) -> None:
    """Fill the gradients that are wanted; see ``csrc/snncore.h: IirBackward``."""
    sums = Sums(layout, call, gradients, arriving.s.device)
    learn = sums.filter is not None
    kernel = partial(cuda_launch.iir_backward, order=max(call.P, call.Q), learn=learn)
    _backward(kernel, "general", layout, call, x, checkpoints, arriving, gradients, sums)


def _level(call: Call, more: bool) -> str:
    """Which options a kernel must have; see ``csrc/cuda/rows.cuh: Level``.

    Args:
        call: the call.
        more: it records h, gets a gradient on it, or adds up gradients of coefficients.
    """
    if call.is_general:
        return "general"
    per_channel = call.decay.count > 1 or call.v_threshold.count > 1
    return "rare" if more or call.refractory or per_channel else "plain"


def _forward(kernel: Callable[[Shape], Launch], level, layout, call, x, outputs) -> None:
    target = _target(x)
    sequences = [(x, layout.inputs[0]), (outputs.s, layout.out)]
    if outputs.h is not None:
        sequences.append((outputs.h, layout.out))
    states = [*call.state, outputs.checkpoints, *outputs.state, outputs.penalty]
    shape = cuda_launch.shape_of(layout, x.dtype, sequences, states, level, target.multiprocessors)
    arguments = cuda_launch.pack_call(layout, call, x, outputs)
    with target.guard:
        target.launch(*kernel(shape), arguments, target.stream)


def _backward(
    kernel: Callable[[Shape], Launch],
    level,
    layout,
    call,
    x,
    checkpoints,
    arriving,
    gradients,
    sums,
) -> None:
    like = arriving.s if x is None else x
    target = _target(like)
    on_x, on_s, on_h = layout.inputs
    sequences: list[tuple[Tensor | None, Rows | None]] = [(gradients.x, layout.out)]
    # What a call does without altogether needs no kernel that asks for it.
    sequences += [(t, rows) for t, rows in ((x, on_x), (arriving.h, on_h)) if t is not None]
    sequences.append((arriving.s, on_s))
    starts = (arriving.v, arriving.synapse, arriving.trace)
    ends = (gradients.v, gradients.synapse, gradients.trace)
    shape = cuda_launch.shape_of(
        layout,
        like.dtype,
        sequences,
        [*call.state, checkpoints, *starts, *ends],
        level,
        target.multiprocessors,
    )
    kept = Outputs(checkpoints=checkpoints)
    arguments = cuda_launch.pack_call(layout, call, x, kept, arriving, gradients, sums)
    with target.guard:
        target.launch(*kernel(shape), arguments, target.stream)
        sums.reduce(partial(_reduce, target, layout))


def _reduce(target: Target, layout: Layout, per_neuron: Tensor, gradient: Tensor) -> None:
    """Sum `[M]` into one value, or into one per channel."""
    channels = gradient.numel()
    inner = layout.channel_inner if channels > 1 else layout.neurons
    each, all_parts, parts = cuda_launch.reduction(layout.neurons, channels)
    partial_sums = torch.empty(channels * parts, dtype=torch.float64, device=per_neuron.device)
    arguments = cuda_launch.pack_reduction(per_neuron, partial_sums, gradient, inner, parts)
    target.launch(*each, arguments, target.stream)
    target.launch(*all_parts, arguments, target.stream)
