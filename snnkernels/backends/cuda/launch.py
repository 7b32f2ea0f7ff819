"""Which CUDA kernel runs a call, in which shape, and with which arguments.

Both ways to the kernels (compiled ahead of time, compiled at run time) ask here, and so do the
tests that run them on the CPU: the one place where a kernel is chosen.
"""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from snnkernels.backends.contract import Sums
from snnkernels.core.call import NUMBERS, Arriving, Call, Gradients, Outputs
from snnkernels.core.strides import Layout, Rows

CHECKPOINT_EVERY = 16  # steps; most backward kernels hold as many in their registers
THREADS, RING_THREADS, REDUCE_THREADS = 128, 32, 256  # per block, as in csrc/cuda/*.cuh

# From this many steps on a ring of stages in shared memory pays, if its warps are so few that each
# multiprocessor holds all of its share at once (32 KiB of ring each).
RING_STEPS, RING_WARPS = 64, 6

MAX_ORDER = 4  # of the filter's kernels
MAX_STEPS = 2**31 - 2**10  # steps are counted in 32 bits, some stages of a ring ahead

# Steps that a kernel with a filter holds in its registers; a divisor of CHECKPOINT_EVERY.
FILTER_CHUNK = 8

IO = {torch.float32: "float", torch.bfloat16: "snn::cuda::bf16", torch.float16: "snn::cuda::f16"}
_RESETS = ("snn::Reset::hard", "snn::Reset::soft", "snn::Reset::none", "snn::Reset::trace")
_ABSENT = (0, 0, 0, 0)
_CALL = struct.Struct(f"<44q4i4f17q3i{1 + len(NUMBERS)}f{len(NUMBERS) % 2 * 4}x")
_REDUCTION = struct.Struct("<7q")
_NOTHING_ARRIVES, _NONE_WANTED = Arriving(), Gradients()


class Launch(NamedTuple):
    """A kernel, by the name that NVRTC knows it by, and the blocks it runs in."""

    kernel: str
    blocks: int
    threads: int


class Shape(NamedTuple):
    """What the choice of a kernel depends on.

    Attributes:
        io: element type in C++.
        size: its bytes.
        steps: T.
        outer: O.
        inner: I.
        aligned: elements that every access may take at once: a power of two.
        ring: every row starts at a multiple of 16 bytes and ends at one.
        level: which options the kernel must have: "plain", "rare" or "general"; see
            ``csrc/cuda/rows.cuh: Level``.
        multiprocessors: of the GPU.
    """

    io: str
    size: int
    steps: int
    outer: int
    inner: int
    aligned: int
    ring: bool
    level: str
    multiprocessors: int


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _level(shape: Shape) -> str:
    return f"snn::cuda::Level::{shape.level}"


def _widest(shape: Shape, widths: tuple[int, ...]) -> int:
    """The most neurons a thread may take while each multiprocessor still gets a full block."""
    fitting = [w for w in widths if w <= shape.aligned]
    neurons = shape.outer * shape.inner
    return next((w for w in fitting if neurons >= w * THREADS * shape.multiprocessors), fitting[-1])


def _blocks(shape: Shape, vec: int) -> int:
    return -(-shape.outer * (shape.inner // vec) // THREADS)


def _ring(shape: Shape) -> Launch | None:
    """The shape of a ring kernel where one pays: a warp holds 32 words of 4 bytes."""
    tiles = shape.outer * -(-shape.inner // (32 * (4 // shape.size)))
    pays = shape.steps >= RING_STEPS and tiles <= RING_WARPS * shape.multiprocessors
    fits = shape.ring and shape.level == "plain"
    return Launch("", tiles, RING_THREADS) if pays and fits else None


@lru_cache(maxsize=1024)
def forward(shape: Shape, reset: int) -> Launch:
    """The kernel for a forward call.

    As many steps are loaded ahead as make 8 registers of 16-bit input, or 32 of float32.
    """
    ring = _ring(shape)
    if ring:
        name = f"neuron_fwd_ring_kernel<{shape.io}, {_RESETS[reset]}, {4 // shape.size}, 16>"
        return ring._replace(kernel="snn::cuda::" + name)
    most = 16 // shape.size
    narrower = (8, 4, 2, 1)[(0 if most == 8 else 1) :]
    widths = {"plain": narrower, "rare": (most, 1), "general": (2, 1)}[shape.level]
    vec = _widest(shape, widths)
    ahead = FILTER_CHUNK if shape.level == "general" else min(32 // vec, 16)
    name = f"neuron_fwd_kernel<{shape.io}, {_RESETS[reset]}, {vec}, {ahead}, {_level(shape)}>"
    return Launch("snn::cuda::" + name, _blocks(shape, vec), THREADS)


@lru_cache(maxsize=1024)
def backward(shape: Shape, reset: int, detach: bool) -> Launch:
    """The kernel for a backward call: short sequences take fewer steps and more neurons."""
    detach = detach and reset != 2 and shape.level != "general"  # those ask when they run
    policy = f"{shape.io}, {_RESETS[reset]}, {_flag(detach)}"
    ring = _ring(shape)
    if ring:
        name = f"neuron_bwd_ring_kernel<{policy}, {4 // shape.size}, 7>"
        return ring._replace(kernel="snn::cuda::" + name)
    vec, chunk = 1, FILTER_CHUNK if shape.level == "general" else CHECKPOINT_EVERY
    if shape.level == "plain":
        most = 4 if shape.steps <= 4 else 8 // shape.size if shape.steps <= 8 else 2
        vec = _widest(shape, tuple(w for w in (4, 2, 1) if w <= most))
        if vec == most and shape.steps <= 8:
            chunk = 4 if shape.steps <= 4 else 8
    name = f"neuron_bwd_kernel<{policy}, {vec}, {chunk}, {_level(shape)}>"
    return Launch("snn::cuda::" + name, _blocks(shape, vec), THREADS)


def _filter_order(order: int) -> int:
    return 2 if order <= 2 else MAX_ORDER


@lru_cache(maxsize=1024)
def iir_forward(shape: Shape, order: int) -> Launch:
    """The kernel for a forward call of the filter alone, of orders up to ``order``."""
    vec = _widest(shape, (2, 1))
    name = f"iir_fwd_kernel<{shape.io}, {_filter_order(order)}, {vec}, {16 // vec}>"
    return Launch("snn::cuda::" + name, _blocks(shape, vec), THREADS)


@lru_cache(maxsize=1024)
def iir_backward(shape: Shape, order: int, learn: bool) -> Launch:
    """The kernel for a backward call; ``learn``: the coefficients' gradients are wanted."""
    vec = 1 if learn else _widest(shape, (2, 1))
    rest = f"{_filter_order(order)}, {vec}, {FILTER_CHUNK}, {_flag(learn)}"
    return Launch(f"snn::cuda::iir_bwd_kernel<{shape.io}, {rest}>", _blocks(shape, vec), THREADS)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def shape_of(
    layout: Layout,
    dtype: torch.dtype,
    sequences: list[tuple[Tensor | None, Rows | None]],
    states: list[Tensor | None],
    level: str,
    multiprocessors: int,
) -> Shape:
    """The shape of a call; ``sequences`` and ``states`` are all the buffers it touches."""
    special = False
    size = dtype.itemsize
    widths = layout.inner  # its lowest bit, and those below, are what all accesses share
    ring = layout.inner * size
    for tensor, rows in sequences:
        if tensor is None or not rows.inner:
            special = True
            continue
        strides = rows.time | (rows.outer if layout.outer > 1 else 0)
        elements = (tensor.data_ptr() // tensor.element_size()) | strides
        widths |= elements
        ring |= tensor.data_ptr() | strides * tensor.element_size()
    for tensor in states:
        if tensor is not None:
            widths |= tensor.data_ptr() // 4
            ring |= tensor.data_ptr()
    ring |= layout.inner * 4  # rows of state
    aligned = min(widths & -widths, 8)
    return Shape(
        IO[dtype],
        size,
        layout.steps,
        layout.outer,
        layout.inner,
        aligned,
        ring % 16 == 0,
        "rare" if special and level == "plain" else level,
        multiprocessors,
    )


def pack_call(
    layout: Layout,
    call: Call,
    x: Tensor | None,
    outputs: Outputs,
    arriving: Arriving = _NOTHING_ARRIVES,
    gradients: Gradients = _NONE_WANTED,
    sums: Sums | None = None,
) -> bytes:
    """The arguments of a kernel that walks over time: ``csrc/cuda/rows.cuh: Call``, in order."""
    if layout.steps > MAX_STEPS:
        raise ValueError(
            f"x has {layout.steps} steps; backend 'cuda' takes up to {MAX_STEPS} in one call"
        )
    on_x, on_s, on_h = (*layout.inputs, None, None)[:3]
    per_neuron = (sums.decay, sums.v_threshold) if sums else (None, None)
    more = (sums.gain, sums.trace_decay, sums.filter) if sums else (None, None, None)
    state = call.state
    buffers = (state.v, state.refractory, arriving.v, *outputs.state, outputs.penalty)
    buffers += (outputs.checkpoints, gradients.v, *per_neuron)
    general = (state.trace, state.synapse, arriving.trace, arriving.synapse)
    general += (gradients.trace, gradients.synapse, *more, arriving.penalty)
    coefficients = (call.decay, call.v_threshold)
    general_coefficients = (call.gain, call.trace_decay)
    numbers = (c.number for c in (*coefficients, *general_coefficients))
    return _CALL.pack(
        *rows_of(x, on_x),
        *rows_of(outputs.s, layout.out),
        *rows_of(outputs.h, layout.out),
        *rows_of(arriving.s, on_s),
        *rows_of(arriving.h, on_h),
        *rows_of(gradients.x, layout.out),
        *map(_address, buffers),
        *(_address(c.tensor) for c in coefficients),
        *(c.count for c in coefficients),
        layout.outer,
        layout.inner,
        layout.channels,
        layout.channel_inner,
        call.surrogate,
        call.detach_reset,
        layout.steps,
        call.checkpoint_every,
        *map(_float32, numbers),
        *(_address(c.tensor) for c in general_coefficients),
        *(c.count for c in general_coefficients),
        _address(call.alpha),
        _address(call.beta),
        1 if call.beta is None else call.beta.shape[1],
        *map(_address, general),
        call.P,
        call.Q,
        call.regularise,
        *map(_float32, (call.refractory, *call.numbers)),
    )


def _float32(number: float) -> float:
    """The nearest float32, which is infinite beyond the largest: what C++ and PyTorch take."""
    return ctypes.c_float(number).value


def rows_of(tensor: Tensor | None, rows: Rows | None) -> tuple[int, ...]:
    """A sequence as the kernels take it: address and strides, in elements."""
    return _ABSENT if tensor is None else (tensor.data_ptr(), *rows)


def reduction(neurons: int, channels: int) -> tuple[Launch, Launch, int]:
    """The two kernels that add up a parameter's gradient, and the parts each channel is cut into.

    It depends on the shape alone, so that the sum is the same on every GPU.
    """
    parts = max(1, min(64, neurons // channels // (8 * REDUCE_THREADS)))
    return (
        Launch("snn::cuda::reduce_channels_kernel<256>", channels * parts, REDUCE_THREADS),
        Launch(
            "snn::cuda::reduce_parts_kernel<256>", -(-channels // REDUCE_THREADS), REDUCE_THREADS
        ),
        parts,
    )


def pack_reduction(
    per_neuron: Tensor, partial: Tensor, out: Tensor, channel_inner: int, parts: int
) -> bytes:
    """The arguments of the reduction kernels: ``csrc/cuda/sums.cuh: Reduction``."""
    return _REDUCTION.pack(
        per_neuron.data_ptr(),
        partial.data_ptr(),
        out.data_ptr(),
        per_neuron.numel(),
        out.numel(),
        channel_inner,
        parts,
    )
