"""Where the neurons of a program lie in memory, and how the kernels read and write them.

Element (o, t, i) of a sequence lies at o * outer + t * time + i * inner elements. Sizes and strides
come divided by ALIGN, which tells the compiler that they are multiples of it: that is what lets it
use 16-byte accesses. They are never specialised (`SIZES`), so that a new size never compiles again.

A row is a value of each neuron of a program. Rows of one kind are tuples; those of a state lie
below each other in memory, `[rows, M]`.
"""

from typing import NamedTuple

import triton
import triton.language as tl

# Run-time arguments of the kernels with a time loop that Triton must not specialise by their value.
SIZES = (
    "steps",
    "rows",
    "inner_size",
    "channels",
    "channel_inner",
    *(
        f"{name}_{stride}"
        for name in ("x", "ds", "dh", "df", "out")
        for stride in ("outer", "time")
    ),
)

NUMBER = tl.constexpr(0)  # kinds of coefficients: a number,
VALUE = tl.constexpr(1)  # a tensor with one value,
PER_CHANNEL = tl.constexpr(2)  # or with one for each channel


class Tile(NamedTuple):
    """How a call is cut into programs; known at compile time.

    Attributes:
        block: neurons of a program.
        ahead: steps loaded before the first of them is stored.
        every: steps between checkpoints; 0: there are none.
        align: elements that all sizes and strides are multiples of.
        wide: the neurons of a program lie in one row o; else they are any BLOCK in a run.
        inner: strides of the inputs over i, 1 or 0 (broadcast), in the order of the kernel.
    """

    block: int
    ahead: int
    every: int
    align: int
    wide: bool
    inner: tuple


class Place(NamedTuple):
    """Where a program's neurons lie. o, i and m are a start and a distance for each lane.

    Attributes:
        first_o, lane_o: row.
        first_i, lane_i: place in it.
        first_m, lane: number of the neuron, m = o * I + i.
        valid: lanes that have a neuron.
        neurons: M, of the call.
    """

    first_o: object
    lane_o: object
    first_i: object
    lane_i: object
    first_m: object
    lane: object
    valid: object
    neurons: object


@triton.jit
def place(rows, inner_size, TILE: tl.constexpr):
    """The `Place` of this program's neurons."""
    BLOCK: tl.constexpr = TILE.block
    size = inner_size * TILE.align
    neurons = rows * size
    lane = tl.arange(0, BLOCK)
    if TILE.wide:
        tiles = ((size + BLOCK - 1) // BLOCK).to(tl.int32)
        row = tl.program_id(0) // tiles
        first_o = row.to(tl.int64)
        first_i = (tl.program_id(0) - row * tiles).to(tl.int64) * BLOCK
        first_m = first_o * size + first_i
        return Place(first_o, 0, first_i, lane, first_m, lane, lane < size - first_i, neurons)
    else:
        first_m = tl.program_id(0).to(tl.int64) * BLOCK
        first_o = first_m // size
        width = size.to(tl.int32)  # a row is narrower than a few blocks
        run = (first_m - first_o * size).to(tl.int32) + lane
        lane_o = run // width
        lane_i = run - lane_o * width
        valid = lane < neurons - first_m
        return Place(first_o, lane_o.to(tl.int64), 0, lane_i, first_m, lane, valid, neurons)


@triton.jit
def at(base, outer, where, INNER: tl.constexpr, TILE: tl.constexpr):
    """Addresses of the program's neurons in a sequence, at step 0."""
    first = where.first_o * (outer * TILE.align) + where.first_i * INNER
    return base + first + (where.lane_o * (outer * TILE.align) + where.lane_i * INNER)


@triton.jit
def where_also(mask, condition):
    """A mask, where one condition for all holds; `&` of the two breaks Triton 3.9's interpreter."""
    return tl.where(condition, mask, False)


@triton.jit
def wrapped(first, lane, size):
    """(first + lane) // size and (first + lane) % size, for first < size in 64 bits.

    Divides in 32 bits, lane for lane: a size of 2^30 or more, which is wider than a program, counts
    as 2^30 with ``first`` as far from its end.
    """
    short = tl.minimum(size, 1 << 30)
    begin = short - tl.minimum(size - first, short)
    run = begin.to(tl.int32) + lane
    turns = run // short.to(tl.int32)
    left = run - turns * short.to(tl.int32)
    return turns, tl.where(turns == 0, first - begin, 0) + left


@triton.jit
def load_coefficient(source, where, channels, channel_inner, KIND: tl.constexpr):
    """A coefficient from a number, or from a tensor with one value or one for each channel."""
    if KIND == NUMBER:
        return source
    elif KIND == VALUE:
        return tl.load(source)
    else:
        row = where.first_m // channel_inner
        turns, _ = wrapped(where.first_m - row * channel_inner, where.lane, channel_inner)
        _, channel = wrapped(row % channels, turns, channels)
        return tl.load(source + channel, mask=where.valid, other=0.0)


@triton.jit
def load_row(pointer, where, mask):
    """A row of the state, zero where it is absent."""
    if pointer is None:
        return tl.full(where.lane.shape, 0.0, tl.float32)
    else:
        return tl.load(pointer + where.first_m + where.lane, mask=mask, other=0.0)


@triton.jit
def load_rows(pointer, where, mask, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """COUNT rows of a state from row FIRST on, zero where it is absent."""
    rows = ()
    for k in tl.static_range(FIRST, FIRST + COUNT):
        if pointer is None:
            row = tl.full(where.lane.shape, 0.0, tl.float32)
        else:
            at_row = pointer + k * where.neurons + where.first_m
            row = tl.load(at_row + where.lane, mask=mask, other=0.0)
        rows = rows + (row,)
    return rows


@triton.jit
def load_row_before(start, kept, where, c):
    """A row of the state before chunk c: of where the call started, or of a checkpoint."""
    first = load_row(start, where, where_also(where.valid, c == 0))
    later = load_row(kept, where, where_also(where.valid, c > 0))
    return tl.where(c > 0, later, first)


@triton.jit
def load_rows_before(start, kept, where, c, COUNT: tl.constexpr):
    """COUNT such rows."""
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (load_row_before(start, kept, where, c),)
        kept += where.neurons
        if start is not None:
            start += where.neurons
    return rows


@triton.jit
def store_row(pointer, row, where, mask):
    """Write a row, as float32."""
    tl.store(pointer + where.first_m + where.lane, row.to(tl.float32), mask=mask)


@triton.jit
def store_rows(pointer, rows, where, mask, COUNT: tl.constexpr):
    """Write COUNT rows below each other, as float32."""
    for k in tl.static_range(COUNT):
        store_row(pointer + k * where.neurons, rows[k], where, mask)


@triton.jit
def load_steps(pointer, t, steps, time, valid, COUNT: tl.constexpr, FULL: tl.constexpr):
    """COUNT steps from t on, as they lie in memory; zero from step ``steps`` on, unless FULL."""
    rows = ()
    pointer += t * time
    for k in tl.static_range(COUNT):
        if FULL:
            row = tl.load(pointer, mask=valid, other=0.0)
        else:
            row = tl.load(pointer, mask=where_also(valid, t + k < steps), other=0.0)
        rows = rows + (row,)
        pointer += time
    return rows


@triton.jit
def zero_rows(where, COUNT: tl.constexpr, dtype: tl.constexpr):
    """COUNT rows of zeros."""
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.full(where.lane.shape, 0.0, dtype),)
    return rows


@triton.jit
def add_rows(totals, rows, COUNT: tl.constexpr):
    """COUNT sums, each in the total's dtype."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (totals[k] + rows[k].to(totals[k].dtype),)
    return out
