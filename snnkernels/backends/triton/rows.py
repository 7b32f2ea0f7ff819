"""Where the neurons of a program lie in memory, and how the kernels read it.

Element (o, t, i) of a sequence lies at o * outer + t * time + i * inner elements. Sizes and strides
come divided by ALIGN, which tells the compiler that they are multiples of it: that is what lets it
use 16-byte accesses. WIDE: the neurons of a program lie in one row o, else it takes BLOCK neurons
m = o * I + i as they come.
"""

import triton
import triton.language as tl


@triton.jit
def place(rows, inner_size, tiles, ALIGN: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Where the neurons of this program lie: o, i and m, each as a start and a lane's distance.

    Returns:
        first_o, lane_o, first_i, lane_i: row and place in it.
        first_m, lane: number of the neuron, m = first_m + lane.
        valid: lanes that stand for a neuron.
    """
    size = inner_size * ALIGN
    lane = tl.arange(0, BLOCK)
    if WIDE:
        row = tl.program_id(0) // tiles
        first_o = row.to(tl.int64)
        first_i = (tl.program_id(0) - row * tiles).to(tl.int64) * BLOCK
        return first_o, 0, first_i, lane, first_o * size + first_i, lane, lane < size - first_i
    else:
        first_m = tl.program_id(0).to(tl.int64) * BLOCK
        first_o = first_m // size
        width = size.to(tl.int32)  # a row is narrower than a block
        run = (first_m - first_o * size).to(tl.int32) + lane
        lane_o = run // width
        lane_i = run - lane_o * width
        return first_o, lane_o.to(tl.int64), 0, lane_i, first_m, lane, lane < rows * size - first_m


@triton.jit
def at(base, outer, where, INNER: tl.constexpr, ALIGN: tl.constexpr):
    """Addresses of the program's neurons in a sequence, at step 0."""
    first = where[0] * (outer * ALIGN) + where[2] * INNER
    return base + first + (where[1] * (outer * ALIGN) + where[3] * INNER)


@triton.jit
def coefficient(
    pointer, number, first_m, lane, valid, channels, channel_inner, PER_CHANNEL: tl.constexpr
):
    """A number, or a tensor with one value, or with one for each channel."""
    if pointer is None:
        return number
    elif PER_CHANNEL:
        span = channels * channel_inner
        run = (first_m % span).to(tl.int32) + lane
        channel = (run // channel_inner.to(tl.int32)) % channels.to(tl.int32)
        return tl.load(pointer + channel, mask=valid, other=0.0)
    else:
        return tl.load(pointer)


@triton.jit
def where_also(mask, condition):
    """A mask, where one condition for all holds; `&` of the two breaks Triton 3.9's interpreter."""
    return tl.where(condition, mask, False)


@triton.jit
def load_row(pointer, first_m, lane, mask, BLOCK: tl.constexpr):
    """A row of the state, zero where it is absent."""
    if pointer is None:
        return tl.full((BLOCK,), 0.0, tl.float32)
    else:
        return tl.load(pointer + first_m + lane, mask=mask, other=0.0)


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
def load_state(at_start, kept, first_m, lane, valid, c, BLOCK: tl.constexpr):
    """A row of the state before chunk c: of where the call started, or of a checkpoint."""
    start = load_row(at_start, first_m, lane, where_also(valid, c == 0), BLOCK)
    later = where_also(valid, c > 0)
    return tl.where(c > 0, tl.load(kept + first_m + lane, mask=later, other=0.0), start)


@triton.jit
def load_state_rows(
    at_start, kept, neurons, first_m, lane, valid, c, COUNT: tl.constexpr, BLOCK: tl.constexpr
):
    """COUNT such rows, as a tuple."""
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (load_state(at_start, kept, first_m, lane, valid, c, BLOCK),)
        kept += neurons
        if at_start is not None:
            at_start += neurons
    return rows


@triton.jit
def coefficients(
    pointer,
    first_m,
    lane,
    valid,
    channels,
    channel_inner,
    COUNT: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
):
    """The rows of a tensor [COUNT, 1] or [COUNT, channels], as a tuple."""
    rows = ()
    for _ in tl.static_range(COUNT):
        row = coefficient(pointer, 0.0, first_m, lane, valid, channels, channel_inner, PER_CHANNEL)
        rows = rows + (row,)
        if PER_CHANNEL:
            pointer += channels
        else:
            pointer += 1
    return rows


@triton.jit
def load_rows(
    pointer,
    neurons,
    first_m,
    lane,
    mask,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """COUNT rows of a state from row FIRST on, zero where it is absent, as a tuple."""
    rows = ()
    for k in tl.static_range(FIRST, FIRST + COUNT):
        if pointer is None:
            row = tl.full((BLOCK,), 0.0, tl.float32)
        else:
            row = tl.load(pointer + k * neurons + first_m + lane, mask=mask, other=0.0)
        rows = rows + (row,)
    return rows


@triton.jit
def store_rows(pointer, rows, neurons, first_m, lane, mask, COUNT: tl.constexpr):
    """Write the first COUNT rows of a tuple below each other."""
    for k in tl.static_range(COUNT):
        tl.store(pointer + k * neurons + first_m + lane, rows[k].to(tl.float32), mask=mask)


@triton.jit
def zero_rows(COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """COUNT rows of zeros, as a tuple."""
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.full((BLOCK,), 0.0, tl.float32),)
    return rows


@triton.jit
def to_double(rows, COUNT: tl.constexpr):
    """The rows in float64."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (rows[k].to(tl.float64),)
    return out


@triton.jit
def add_double(totals, rows, COUNT: tl.constexpr):
    """The sums of float64 and float32 rows, in float64."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (totals[k] + rows[k].to(tl.float64),)
    return out
