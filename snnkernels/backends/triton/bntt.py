"""BNTT: batch norm with statistics per step and channel, over the rows of a step.

A sequence `[T, N, C, H, W]` whose steps are channels_last lies in memory as `[T, rows, C]` with
rows = N H W. Each pass is two kernels: one sums over parts of a step's rows, the other adds up the
parts and writes. Nothing is atomic and the cut into parts depends on shapes alone, so a call always
gives the same bits.

Memory: the forward pass reads x twice and writes out, the backward pass reads dout and kept twice
and writes dx. The parts' sums are a fraction of that. The second kernel begins where the first one
ended: what that read last may still be in the L2 cache.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from snnkernels.backends.triton.equations import INTERPRETED, narrow, widen
from snnkernels.backends.triton.launch import NVIDIA, on_device_of

THREADS = 128  # of a program; one reads 16 bytes of a tile, or 2 values where it cannot
MOST_COLUMNS = 64  # channels of a tile: 128 bytes of a row, or more
PROGRAMS = 2048  # of a kernel, if there is enough to do: several for each multiprocessor
AHEAD = 4  # tiles loaded before the first of them is used

# One compilation for all sizes; that they are multiples of 16 bytes is said by ALIGN.
_SIZES = ("rows", "channel_size", "parts", "part_rows")


@triton.jit
def _part(program, rows, channels, parts, part_rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """What a program works on.

    Returns:
        t, part: its step, and which part of the step's rows.
        begin, count: the first of these rows, and how many there are.
        row: of a tile, `[ROWS, 1]`.
        c, valid: channels, `[1, COLUMNS]`, and which of them there are.
    """
    blocks = tl.cdiv(channels, COLUMNS)
    part = program // blocks % parts
    begin = part.to(tl.int64) * part_rows
    count = tl.minimum(rows - begin, part_rows).to(tl.int32)
    row = tl.arange(0, ROWS)[:, None]
    c = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return (program // blocks // parts).to(tl.int64), part, begin, count, row, c, c < channels


@triton.jit
def _load_tiles(base, left, row, c, valid, channels, ROWS: tl.constexpr, AHEAD: tl.constexpr):
    """AHEAD tiles from ``base`` on, as they lie in memory, zero from row ``left`` on."""
    tiles = ()
    for k in tl.static_range(AHEAD):
        live = (k * ROWS + row < left) & valid
        tiles = tiles + (tl.load(base + (row * channels + c), mask=live, other=0.0),)
        base += ROWS * channels
    return tiles


@triton.jit
def _store_sums(sums, one, two, t, part, parts, c, valid, channels):
    """Write the sums of a part, `[ROWS, COLUMNS]` each, to float64 `[T, parts, 2, C]`."""
    to = sums + (t * parts + part) * (2 * channels) + c
    tl.store(to, tl.sum(one, 0, keep_dims=True), mask=valid)
    tl.store(to + channels, tl.sum(two, 0, keep_dims=True), mask=valid)


@triton.jit
def _add_sums(sums, t, parts, row, c, valid, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The two sums over all parts of step t, float64 `[1, COLUMNS]`."""
    one = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
    two = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
    for first in range(0, parts, ROWS):
        live = (first + row < parts) & valid
        at = sums + (t * parts + first + row) * (2 * channels) + c
        one += tl.load(at, mask=live, other=0.0)
        two += tl.load(at + channels, mask=live, other=0.0)
    return tl.sum(one, 0, keep_dims=True), tl.sum(two, 0, keep_dims=True)


@triton.jit(do_not_specialize=[*_SIZES, "x_time"])
def bntt_moments_kernel(
    x,
    sums,
    x_time: tl.int64,
    rows: tl.int64,
    channel_size: tl.int32,
    parts: tl.int32,
    part_rows: tl.int32,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """The sums of x and of x^2 over each part.

    Each place of a tile has a mean of its own and a sum of squares about it (Welford 1962): only
    float64 sees the square of a mean, whatever its size.
    """
    channels = channel_size * ALIGN
    t, part, begin, count, row, c, valid = _part(
        tl.program_id(0), rows, channels, parts, part_rows, ROWS, COLUMNS
    )
    x_at = x + t * (x_time * ALIGN) + begin * channels
    met = tl.full((ROWS, 1), 0.0, tl.float32)  # values so far
    mean = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    squares = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for first in range(0, count, AHEAD * ROWS):
        tiles = _load_tiles(x_at, count - first, row, c, valid, channels, ROWS, AHEAD)
        for k in tl.static_range(AHEAD):
            one = tl.where(first + k * ROWS + row < count, 1.0, 0.0)
            met += one
            share = one / tl.maximum(met, 1.0)
            d = widen(tiles[k]) - mean
            mean += d * share
            squares += d * (d * (one - share))  # 0 where there is no row, however large d
        x_at += AHEAD * ROWS * channels
    of_mean = mean.to(tl.float64) * met.to(tl.float64)
    of_squares = squares.to(tl.float64) + of_mean * mean.to(tl.float64)
    _store_sums(sums, of_mean, of_squares, t, part, parts, c, valid, channels)


@triton.jit(do_not_specialize=[*_SIZES, "x_time"])
def bntt_fwd_kernel(
    x,
    weight,
    sums,
    out,
    mean_out,
    rstd_out,
    eps: tl.float32,
    x_time: tl.int64,
    rows: tl.int64,
    channel_size: tl.int32,
    parts: tl.int32,
    part_rows: tl.int32,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Fill out, mean and rstd, from what `bntt_moments_kernel` summed up."""
    channels = channel_size * ALIGN
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    t, part, begin, count, row, c, valid = _part(
        program, rows, channels, parts, part_rows, ROWS, COLUMNS
    )
    total, total_squares = _add_sums(sums, t, parts, row, c, valid, channels, ROWS, COLUMNS)
    share = 1.0 / rows.to(tl.float64)
    exact_mean = total * share
    var = total_squares * share - exact_mean * exact_mean
    mean = exact_mean.to(tl.float32)
    rstd = tl.rsqrt(tl.where(var < 0.0, 0.0, var).to(tl.float32) + eps)
    if part == 0:
        tl.store(mean_out + t * channels + c, mean, mask=valid)
        tl.store(rstd_out + t * channels + c, rstd, mask=valid)
    scale = rstd * tl.load(weight + t * channels + c, mask=valid, other=0.0)
    x_at = x + t * (x_time * ALIGN) + begin * channels
    out_at = out + (t * rows + begin) * channels
    for first in range(0, count, AHEAD * ROWS):
        tiles = _load_tiles(x_at, count - first, row, c, valid, channels, ROWS, AHEAD)
        for k in tl.static_range(AHEAD):
            value = narrow((widen(tiles[k]) - mean) * scale, out.dtype.element_ty)
            live = (first + k * ROWS + row < count) & valid
            tl.store(out_at + (row * channels + c), value, mask=live)
            out_at += ROWS * channels
        x_at += AHEAD * ROWS * channels


@triton.jit
def _centre(mean, t, c, valid, channels, COLUMNS: tl.constexpr):
    """What the normalised value is 0 at: the mean, or 0 where the output is kept."""
    if mean is None:
        return tl.full((1, COLUMNS), 0.0, tl.float32)
    else:
        return tl.load(mean + t * channels + c, mask=valid, other=0.0)


@triton.jit(do_not_specialize=[*_SIZES, "dout_time", "kept_time"])
def bntt_gradient_sums_kernel(
    dout,
    kept,
    mean,
    sums,
    dout_time: tl.int64,
    kept_time: tl.int64,
    rows: tl.int64,
    channel_size: tl.int32,
    parts: tl.int32,
    part_rows: tl.int32,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """The sums of dout and of dout (kept - mean) over each part."""
    channels = channel_size * ALIGN
    t, part, begin, count, row, c, valid = _part(
        tl.program_id(0), rows, channels, parts, part_rows, ROWS, COLUMNS
    )
    centre = _centre(mean, t, c, valid, channels, COLUMNS)
    dout_at = dout + t * (dout_time * ALIGN) + begin * channels
    kept_at = kept + t * (kept_time * ALIGN) + begin * channels
    plain = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    along = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for first in range(0, count, AHEAD * ROWS):
        g_tiles = _load_tiles(dout_at, count - first, row, c, valid, channels, ROWS, AHEAD)
        tiles = _load_tiles(kept_at, count - first, row, c, valid, channels, ROWS, AHEAD)
        for k in tl.static_range(AHEAD):  # where there is no row, g is 0
            g = widen(g_tiles[k])
            plain += g
            along += g * (widen(tiles[k]) - centre)
        dout_at += AHEAD * ROWS * channels
        kept_at += AHEAD * ROWS * channels
    _store_sums(
        sums, plain.to(tl.float64), along.to(tl.float64), t, part, parts, c, valid, channels
    )


@triton.jit(do_not_specialize=[*_SIZES, "dout_time", "kept_time"])
def bntt_bwd_kernel(
    dout,
    kept,
    mean,
    rstd,
    weight,
    sums,
    dx,
    dweight,
    dout_time: tl.int64,
    kept_time: tl.int64,
    rows: tl.int64,
    channel_size: tl.int32,
    parts: tl.int32,
    part_rows: tl.int32,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Fill dx and dweight, from what `bntt_gradient_sums_kernel` summed up.

    dx = weight rstd (dout - mean(dout) - normal mean(dout normal)), normal = factor (kept - mean).
    """
    channels = channel_size * ALIGN
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    t, part, begin, count, row, c, valid = _part(
        program, rows, channels, parts, part_rows, ROWS, COLUMNS
    )
    plain, along = _add_sums(sums, t, parts, row, c, valid, channels, ROWS, COLUMNS)
    centre = _centre(mean, t, c, valid, channels, COLUMNS)
    rstd_t = tl.load(rstd + t * channels + c, mask=valid, other=0.0)
    weight_t = tl.load(weight + t * channels + c, mask=valid, other=1.0)
    if mean is None:
        factor = 1.0 / weight_t
    else:
        factor = rstd_t
    of_weight = along * factor.to(tl.float64)
    if part == 0:
        tl.store(dweight + t * channels + c, of_weight.to(tl.float32), mask=valid)
    share = 1.0 / rows.to(tl.float64)
    plain_mean = (plain * share).to(tl.float32)
    by = (of_weight * share).to(tl.float32) * factor
    scale = weight_t * rstd_t
    dout_at = dout + t * (dout_time * ALIGN) + begin * channels
    kept_at = kept + t * (kept_time * ALIGN) + begin * channels
    dx_at = dx + (t * rows + begin) * channels
    for first in range(0, count, AHEAD * ROWS):
        g_tiles = _load_tiles(dout_at, count - first, row, c, valid, channels, ROWS, AHEAD)
        tiles = _load_tiles(kept_at, count - first, row, c, valid, channels, ROWS, AHEAD)
        for k in tl.static_range(AHEAD):
            centred = (widen(g_tiles[k]) - plain_mean) - (widen(tiles[k]) - centre) * by
            live = (first + k * ROWS + row < count) & valid
            value = narrow(centred * scale, dx.dtype.element_ty)
            tl.store(dx_at + (row * channels + c), value, mask=live)
            dx_at += ROWS * channels
        dout_at += AHEAD * ROWS * channels
        kept_at += AHEAD * ROWS * channels


class Cut(NamedTuple):
    """How a sequence is cut into programs.

    Attributes:
        parts: of a step's rows, each of ``part_rows`` but the last.
        blocks: of channels, each of ``columns``.
        rows, columns: of a tile, powers of two.
    """

    parts: int
    part_rows: int
    blocks: int
    rows: int
    columns: int


def cut(steps: int, rows: int, channels: int, align: int) -> Cut:
    """The cut for a sequence whose threads can read ``align`` values at once."""
    columns = min(triton.next_power_of_2(channels), MOST_COLUMNS)
    tile_rows = THREADS * max(align, 2) // columns
    blocks = triton.cdiv(channels, columns)
    # Each program of the second kernel reads the sums of all parts of its step, 16 bytes a channel:
    # with so many parts that is little beside its own rows.
    parts = min(triton.cdiv(PROGRAMS, steps * blocks), 1 + isqrt(rows // 8))
    group = AHEAD * tile_rows
    part_rows = triton.cdiv(triton.cdiv(rows, parts), group) * group
    return Cut(triton.cdiv(rows, part_rows), part_rows, blocks, tile_rows, columns)


def compiler_options(lanes: int) -> dict:
    """What the compiler is told, given the lanes of a warp.

    Products are fused into sums: other than a neuron's, these results need no other backend's bits.
    """
    return {"num_warps": THREADS // lanes, "enable_fp_fusion": True}


def takes_bntt(*sequences: Tensor) -> bool:
    """Whether the kernels of BNTT take these `[T, N, C, H, W]`: each step channels_last.

    float32, bfloat16 or float16, on a GPU that the backend runs on.
    """
    return all(
        x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and x.ndim == 5
        and x.numel() > 0
        and x[0].is_contiguous(memory_format=torch.channels_last)
        and (not NVIDIA or torch.cuda.get_device_capability(x.device) >= (8, 0))
        for x in sequences
    )


def _run(kernels, sequences: dict[str, Tensor], tensors: tuple[dict, dict], **arguments) -> None:
    """Launch the two kernels of a pass, which the parts' sums lead from one to the other.

    Args:
        kernels: both.
        sequences: inputs by name.
        tensors: other pointers of each kernel, by name.
        **arguments: numbers of the second kernel.
    """
    x = next(iter(sequences.values()))
    steps, channels, rows = x.shape[0], x.shape[2], x[0, :, 0].numel()
    times = [s.stride(0) for s in sequences.values()]
    align = 16 // max(s.element_size() for s in sequences.values())
    if any(k % align for k in (channels, *times)):
        align = 1  # each value by itself, from an address of its own
    plan = cut(steps, rows, channels, align)
    sums = x.new_empty(steps, plan.parts, 2, channels, dtype=torch.float64)
    shared = {
        **sequences,
        "sums": sums,
        **{f"{name}_time": k // align for name, k in zip(sequences, times, strict=True)},
        "rows": rows,
        "channel_size": channels // align,
        "parts": plan.parts,
        "part_rows": plan.part_rows,
        "ALIGN": align,
        "ROWS": plan.rows,
        "COLUMNS": plan.columns,
        "AHEAD": AHEAD,
        **compiler_options(32 if NVIDIA or INTERPRETED else 64),
    }
    grid = (steps * plan.parts * plan.blocks,)
    with on_device_of(x):
        kernels[0][grid](**shared, **tensors[0])
        kernels[1][grid](**shared, **tensors[1], **arguments)


def bntt_forward(x: Tensor, weight: Tensor, eps: float, *, out, mean, rstd) -> None:
    """Fill out, mean and rstd; see ``csrc/snncore.h: BnttForward``."""
    _run(
        (bntt_moments_kernel, bntt_fwd_kernel),
        {"x": x},
        ({}, {"weight": weight, "out": out, "mean_out": mean, "rstd_out": rstd}),
        eps=eps,
    )


def bntt_backward(dout, kept, mean: Tensor | None, rstd, weight, *, dx, dweight) -> None:
    """Fill dx and dweight; see ``csrc/snncore.h: BnttBackward``."""
    _run(
        (bntt_gradient_sums_kernel, bntt_bwd_kernel),
        {"dout": dout, "kept": kept},
        (
            {"mean": mean},
            {"mean": mean, "rstd": rstd, "weight": weight, "dx": dx, "dweight": dweight},
        ),
    )
